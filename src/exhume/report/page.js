// Sorts and filters the page's lists, and shows an image large. Without it the page is whole, in its own order.
"use strict";

{
  const collator = new Intl.Collator("en", { numeric: true });

  // ---- Lists: every [data-list] holds .controls and [data-items]; the items' data-* are what is sorted and filtered.

  // Orders two items by data-KEY: numbers as numbers, words as words, what is unknown last.
  const by = (key, falling) => (a, b) => {
    const [x, y] = [a.dataset[key] ?? "", b.dataset[key] ?? ""];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? collator.compare(x, y) : x - y;
    return falling ? -order : order;
  };

  for (const list of document.querySelectorAll("[data-list]")) {
    const controls = list.querySelector(".controls");
    const box = list.querySelector("[data-items]");
    const items = [...box.children];
    const sort = controls.querySelector("[data-sort]");
    const filters = [...controls.querySelectorAll("[data-filter]")];
    const find = controls.querySelector("[data-find]");
    const heads = [...list.querySelectorAll("th[data-key]")];

    const classes = [...new Set(items.map((item) => item.dataset.class))].sort(collator.compare);
    const choice = controls.querySelector("[data-filter=class]");
    for (const name of classes) choice.append(new Option(name, name));
    choice.parentElement.hidden = classes.length < 2;

    const fits = (item) =>
      filters.every((filter) => !filter.value || item.dataset[filter.dataset.filter] === filter.value) &&
      item.dataset.words.toLowerCase().includes(find.value.trim().toLowerCase());

    const arrange = (key, direction) => {
      box.append(...[...items].sort(by(key, direction === "down")));
      for (const head of heads) {
        if (head.dataset.key === key) head.ariaSort = direction === "down" ? "descending" : "ascending";
        else head.removeAttribute("aria-sort");
      }
    };

    const filter = () => {
      for (const item of items) item.hidden = !fits(item);
      const shown = items.filter((item) => !item.hidden).length;
      controls.querySelector("output").value = `${shown} of ${items.length}`;
    };

    // A heading becomes a button: the first press sorts, the next turns the order round.
    for (const head of heads) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.dataset.first ?? "up";
        const turned = first === "up" ? "down" : "up";
        const sorted = head.ariaSort === (first === "up" ? "ascending" : "descending");
        const [key, direction] = [head.dataset.key, sorted ? turned : first];
        sort.value = `${key} ${direction}`;
        arrange(key, direction);
      });
    }

    sort.addEventListener("change", () => arrange(...sort.value.split(" ")));
    for (const control of filters) control.addEventListener("change", filter);
    find.addEventListener("input", filter);
    controls.hidden = items.length < 2;
    filter();
  }

  // ---- An image, large: a dialog that the browser closes at Escape; the arrows go on to its neighbours.

  const viewer = document.getElementById("viewer");
  let current = null;

  const framed = (part) => {
    const frame = document.createElement("figure");
    const words = document.createElement("figcaption");
    words.textContent = part.alt ?? "";
    frame.append(part.cloneNode(true), words);
    return frame;
  };

  const show = (images) => {
    current = images;
    viewer.querySelector(".frames").replaceChildren(...[...images.children].map(framed));
    viewer.querySelector(".caption").textContent = images.dataset.caption;
    if (!viewer.open) viewer.showModal();
  };

  const step = (places) => {
    const near = [...current.closest(".large, [data-items]").querySelectorAll(".images")].filter((other) => other.checkVisibility());
    show(near[(near.indexOf(current) + places + near.length) % near.length]);
  };

  for (const images of document.querySelectorAll(".images")) {
    images.tabIndex = 0;
    images.role = "button";
    images.ariaLabel = `${images.dataset.caption}: show large`;
    images.addEventListener("click", () => show(images));
    images.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      show(images);
    });
  }

  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
    if (event.target.localName !== "button") return;
    if (event.target.value === "0") viewer.close();
    else step(Number(event.target.value));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
}
