"""Each way in which pictures and their labels may be laid out: one module, one function that gives a `Listing`."""
