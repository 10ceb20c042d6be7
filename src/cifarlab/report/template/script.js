"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  document.documentElement.classList.add("scripted");
  const byId = (id) => document.getElementById(id);
  const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share < 0.1 ? 1 : 0)} %`;
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  const images = { ...data.images };
  for (const button of document.querySelectorAll("button.picture"))
    images[button.dataset.picture] = button.querySelector("img").src;

  // A picture, opened

  const dialog = byId("picture");
  let group = [];
  let place = 0;

  const taken = (answer) => `${data.classes[answer.p[0][0]]} ${percent(answer.p[0][1])}`;

  function show() {
    const index = group[place];
    const picture = data.pictures[index];
    const names = picture.by ? [picture.by] : data.runs;
    const several = names.length > 1 || picture.by;
    const called = picture.by ? index.replace("train-", "Training picture ") : `Picture ${index}`;
    byId("picture-title").textContent = `${called}: labelled ${data.classes[picture.t]}`;
    byId("picture-about").textContent = several ? "" : `Answer: ${taken(picture.r[0])}`;
    byId("picture-place").textContent = `${place + 1} of ${group.length}`;
    byId("before").disabled = place === 0;
    byId("after").disabled = place === group.length - 1;
    byId("picture-answers").replaceChildren(...picture.r.map((answer, run) => table(answer, several ? names[run] : "")));
    const image = new Image();
    image.onload = () => {
      if (index !== group[place]) return;
      const views = [view(image, null, null, "picture")];
      picture.r.forEach((answer, run) => {
        for (const [k, map] of answer.m || [])
          views.push(view(image, map, data.maps[run], `Grad-CAM for ${data.classes[k]}${several ? `, ${names[run]}` : ""}`));
      });
      byId("picture-views").replaceChildren(...views);
    };
    image.src = images[index];
  }

  function table(answer, run) {
    const body = make("tbody");
    for (const [k, share] of answer.p) {
      const bar = make("i");
      bar.style.width = `${100 * share}%`;
      body.append(make("tr", {}, make("th", { scope: "row", textContent: data.classes[k] }), make("td", { textContent: percent(share) }), make("td", {}, bar)));
    }
    const head = make("tr", {}, make("th", { scope: "col", textContent: "class" }), make("th", { scope: "col", textContent: "probability" }), make("td"));
    const caption = run ? `${run}: likeliest classes` : "Likeliest classes";
    return make("table", {}, make("caption", { textContent: caption }), make("thead", {}, head), body);
  }

  function view(image, map, shape, words) {
    const large = map ? 192 : image.naturalWidth;
    const canvas = make("canvas", { width: large, height: Math.round((large * image.naturalHeight) / image.naturalWidth) });
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    let label = words;
    if (map) {
      const heat = Uint8Array.from(atob(map), (c) => c.charCodeAt(0));
      paint(pen, canvas, heat, shape);
      canvas.className = "smooth";
      label += `, ${whereabouts(heat, shape)}`;
    }
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    return make("figure", {}, canvas, make("figcaption", { textContent: words }));
  }

  function paint(pen, canvas, heat, [h, w]) {
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    const at = (y, x) => heat[Math.min(Math.max(y, 0), h - 1) * w + Math.min(Math.max(x, 0), w - 1)] / 255;
    for (let y = 0; y < canvas.height; y++)
      for (let x = 0; x < canvas.width; x++) {
        const v = ((y + 0.5) * h) / canvas.height - 0.5, u = ((x + 0.5) * w) / canvas.width - 0.5;
        const y0 = Math.floor(v), x0 = Math.floor(u), dy = v - y0, dx = u - x0;
        const value = (at(y0, x0) * (1 - dx) + at(y0, x0 + 1) * dx) * (1 - dy) + (at(y0 + 1, x0) * (1 - dx) + at(y0 + 1, x0 + 1) * dx) * dy;
        const place = (y * canvas.width + x) * 4, colours = pixels.data;
        const grey = 0.299 * colours[place] + 0.587 * colours[place + 1] + 0.114 * colours[place + 2];
        const stop = Math.min(Math.floor(value * (data.heat.length - 1)), data.heat.length - 2), rest = value * (data.heat.length - 1) - stop;
        for (let c = 0; c < 3; c++)
          colours[place + c] = 0.4 * grey + 0.6 * (data.heat[stop][c] * (1 - rest) + data.heat[stop + 1][c] * rest);
      }
    pen.putImageData(pixels, 0, 0);
  }

  function whereabouts(heat, [h, w]) {
    const largest = heat.indexOf(Math.max(...heat));
    if (heat[largest] === 0) return "no place speaks for it";
    const third = (value, of, names) => names[Math.min(2, Math.floor((3 * (value + 0.5)) / of))];
    const row = third(Math.floor(largest / w), h, ["top", "middle", "bottom"]), column = third(largest % w, w, ["left", "centre", "right"]);
    return `strongest at the ${row} ${column}`;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.picture");
    if (!button) return;
    const all = [...(button.closest("ul") || document).querySelectorAll("button.picture")];
    group = all.map((each) => each.dataset.picture);
    place = all.indexOf(button);
    show();
    dialog.showModal();
  });
  const step = (by) => {
    if (group[place + by] === undefined) return;
    place += by;
    show();
  };
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });

  // The confusion matrix

  const matrix = byId("matrix");
  const fields = matrix ? [...matrix.querySelectorAll("button")] : [];
  const side = data.classes.length;

  function pick(t, p) {
    const panel = byId("cell");
    const [n, share, indices] = data.cells[`${t},${p}`] || [0, 0, []];
    for (const field of fields) {
      const chosen = field.dataset.cell === `${t},${p}`;
      field.setAttribute("aria-pressed", chosen);
      field.tabIndex = chosen ? 0 : -1;
    }
    byId("true").value = t;
    byId("predicted").value = p;
    const what = t === p ? `${data.classes[t]}, recognised` : `${data.classes[t]} taken for ${data.classes[p]}`;
    const there = indices.filter((index) => data.pictures[index]);
    const shown = there.length === n ? "" : ` Shown: the ${there.length} surest.`;
    const about = `${what}: ${n.toLocaleString("en")} of ${data.classes[t]}’s pictures, ${(100 * share).toFixed(1)} %.${n ? shown : ""}`;
    panel.replaceChildren(make("p", { textContent: about }));
    if (there.length) panel.append(make("ul", { className: "pictures" }, ...there.map(thumbnail)));
  }

  function thumbnail(index) {
    const picture = data.pictures[index], [k, share] = picture.r[0].p[0];
    const words = `picture ${index}: ${data.classes[picture.t]}, answer ${data.classes[k]} with ${percent(share)}`;
    const button = make("button", { type: "button", className: "picture" }, make("img", { src: images[index], alt: words, width: 32, height: 32 }));
    button.dataset.picture = index;
    button.setAttribute("aria-haspopup", "dialog");
    const caption = make("span", { textContent: percent(share) });
    caption.setAttribute("aria-hidden", "true");
    return make("li", {}, button, caption);
  }

  fields.forEach((field, at) => {
    const [t, p] = field.dataset.cell.split(",").map(Number);
    const [n, share] = data.cells[field.dataset.cell] || [0, 0];
    field.setAttribute("aria-label", `${data.classes[t]} taken for ${data.classes[p]}: ${n}, ${(100 * share).toFixed(1)} percent`);
    field.addEventListener("click", () => pick(t, p));
    field.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!by) return;
      event.preventDefault();
      const row = Math.floor(at / side) + by[0], column = (at % side) + by[1];
      if (row < 0 || column < 0 || row >= side || column >= side) return;
      const next = fields[row * side + column];
      field.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
  for (const choice of document.querySelectorAll("input[name=unit]"))
    choice.addEventListener("change", () => (matrix.className = `matrix ${choice.value}`));
  if (byId("true")) {
    const chosen = () => pick(Number(byId("true").value), Number(byId("predicted").value));
    byId("true").addEventListener("change", chosen);
    byId("predicted").addEventListener("change", chosen);
    const mistakes = Object.entries(data.cells).filter(([cell]) => cell.split(",")[0] !== cell.split(",")[1]);
    const fullest = mistakes.sort((a, b) => b[1][0] - a[1][0])[0];
    pick(...(fullest ? fullest[0] : "0,0").split(",").map(Number));
  }

  // Pairs of runs

  const pair = byId("pair");
  if (pair) {
    const choose = () => {
      for (const each of document.querySelectorAll(".pair")) each.style.display = each.dataset.pair === pair.value ? "" : "none";
    };
    pair.addEventListener("change", choose);
    choose();
  }

  // What is wider than the window says so

  const scrolled = [...document.querySelectorAll(".wide, .pictures, .heats")].filter((each) => !each.closest("dialog"));
  for (const each of scrolled) {
    if (each.matches(".wide")) each.after(make("p", { className: "more", textContent: "More to the right: scroll sideways." }));
    const see = () => each.classList.toggle("goes-on", each.scrollLeft + each.clientWidth < each.scrollWidth - 4);
    each.addEventListener("scroll", see, { passive: true });
    new ResizeObserver(see).observe(each);
  }

  const folded = [...document.querySelectorAll("main details")];
  let wereFolded = [];
  addEventListener("beforeprint", () => {
    wereFolded = folded.filter((each) => !each.open && !each.querySelector("pre"));
    for (const each of wereFolded) each.open = true;
  });
  addEventListener("afterprint", () => wereFolded.forEach((each) => (each.open = false)));
})();
