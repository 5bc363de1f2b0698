// Functions with which the lab questions the status page.
globalThis.probe = (() => {
  const scroller = document.querySelector('#connections .scroll');
  const rows = scroller.querySelector('tbody');
  const edge = 0.5; // Of a pixel: rows may begin between two pixels.

  /// The next snapshot, as the server sends it.
  const snapshot = () => new Promise((resolve) => {
    const events = new EventSource('/events');
    events.addEventListener('snapshot', (event) => {
      events.close();
      resolve(JSON.parse(event.data));
    });
  });
  /// Once a frame is drawn.
  const drawn = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve(true))));
  /// Text of a row by which it is known: the client's program and address.
  const key = (row) => row.cells[2].textContent;
  const keys = (seen) => seen.connections.map((c) => [c.program, c.client].filter(Boolean).join(' ')).reverse();

  const name = (node) => node.localName + (node.id && `#${node.id}`) + (node.className && `.${node.className}`);

  /// Top and bottom of where rows are in sight.
  function sight() {
    const box = scroller.getBoundingClientRect();
    const head = scroller.querySelector('thead').getBoundingClientRect();
    return [Math.max(box.top, head.bottom), Math.min(box.bottom, innerHeight)];
  }
  function rowsInSight() {
    const [top, bottom] = sight();
    return [...rows.children].map((row) => [row, row.getBoundingClientRect()])
      .filter(([, box]) => box.bottom > top + edge && box.top < bottom - edge);
  }
  /// What is wrong with the rows in sight; notes the others as seen.
  function look(expected, seen, wrong) {
    const [top, bottom] = sight();
    let [end, last] = [top, null];
    for (const [row, box] of rowsInSight()) {
      const at = row.className === 'space' ? undefined : expected.get(key(row));
      const empty = [...row.cells].slice(0, 7).some((cell) => cell.textContent.trim() === '');
      if (row.className === 'space') wrong.add('no row where one should be');
      else if (at === undefined) wrong.add(`unknown row ${key(row)}`);
      else if (last !== null && at !== last + 1) wrong.add(`row ${at} after row ${last}`);
      else if (empty) wrong.add(`an empty cell in row ${at}`);
      else if (box.top > end + edge) wrong.add(`${box.top - end} px before row ${at}`);
      else seen.add(at);
      [end, last] = [box.bottom, at];
    }
    if (end < bottom - edge) wrong.add(`${bottom - end} px below the last row`);
  }
  /// Pixels of height without a row.
  function bare() {
    const [top, bottom] = sight();
    const filled = rowsInSight().filter(([row]) => row.className !== 'space')
      .map(([, box]) => Math.min(box.bottom, bottom) - Math.max(box.top, top));
    return Math.max(0, bottom - top - filled.reduce((sum, part) => sum + part, 0));
  }

  /// Begins to watch the rows and the frames; `end` tells what was seen.
  let watched = null;
  function begin(expected) {
    const order = new Map(expected.map((name, at) => [name, at]));
    const now = { frames: [], scripts: [], seen: new Set(), wrong: new Set(), bare: 0, ended: false };
    const originals = [];
    let [inFrame, parsed, isTimed] = [0, 0, false];
    // The script's own functions are global, and found by name when they are called. One within another is not timed.
    const time = (of, name, also) => {
      const original = of[name];
      originals.push(() => { of[name] = original; });
      of[name] = (...args) => {
        if (isTimed) return original(...args);
        isTimed = true;
        const begun = performance.now();
        try { return original(...args); } finally {
          const took = performance.now() - begun;
          isTimed = false;
          inFrame += took;
          also(took);
        }
      };
    };
    time(JSON, 'parse', (took) => { parsed = took; });
    time(globalThis, 'show', (took) => now.scripts.push({ parsed, shown: took }));
    time(globalThis, 'draw', () => {});
    // A message that is sent in a frame arrives after all of it was drawn.
    const { port1, port2 } = new MessageChannel();
    const inFrames = [];
    port1.onmessage = () => {
      look(order, now.seen, now.wrong);
      inFrames.push(inFrame);
      inFrame = 0;
    };
    let before = null;
    const frame = (at) => {
      if (now.ended) return;
      if (before !== null) now.frames.push(at - before);
      before = at;
      // The browser may scroll before the page has drawn.
      now.bare = Math.max(now.bare, bare());
      port2.postMessage(null);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    watched = { now, inFrames, restore: () => originals.forEach((original) => original()) };
  }
  function end() {
    const { now, inFrames, restore } = watched;
    now.ended = true;
    restore();
    return { ...now, seen: now.seen.size, wrong: [...now.wrong].slice(0, 5), inFrames };
  }

  /// Contrast of two colours, WCAG 2.2.
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  function rgba(colour) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  }
  function luminance(colour) {
    const [r, g, b] = rgba(colour).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function contrast(one, other) {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  }
  function background(node) {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return 'white';
  }
  /// The least contrast of text in the page, and of the colours that it has for text on those that it has below.
  function least() {
    const pairs = [];
    for (const node of document.body.querySelectorAll('*')) {
      const isText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim() !== '');
      if (isText) pairs.push([name(node), getComputedStyle(node).color, background(node)]);
    }
    const filter = document.getElementById('filter');
    pairs.push(['placeholder', getComputedStyle(filter, '::placeholder').color, background(filter)]);
    const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    for (const text of ['ink', 'dim', 'good', 'warn', 'bad']) {
      for (const below of ['paper', 'card', 'hover']) pairs.push([`--${text} on --${below}`, of(text), of(below)]);
    }
    const found = pairs.map(([what, one, other]) => [contrast(one, other), what]).sort((a, b) => a[0] - b[0]);
    return { contrast: found[0][0], of: found[0][1], pairs: found.length };
  }

  return {
    snapshot, keys, begin, end, least, drawn,
    /// The number of connections, once the page follows them.
    rows: () => document.getElementById('live').className === 'on' && document.getElementById('count').textContent,
    /// How far down the list is.
    top: () => scroller.scrollTop,
    /// Where the rows are, and how far there is to scroll.
    middle() {
      const box = scroller.getBoundingClientRect();
      const [top, bottom] = sight();
      return {
        x: box.left + box.width / 2, y: (top + bottom) / 2,
        far: scroller.scrollHeight - scroller.clientHeight, page: (bottom - top) * 0.9,
      };
    },
    /// How much wider the page is than the screen, the elements that reach out of it, and figures that are cut. A row
    /// has the longest ones until the next snapshot.
    fit() {
      const [row] = rowsInSight().map(([row]) => row).filter((row) => row.className !== 'space');
      for (const cell of row.querySelectorAll('.n')) (cell.firstElementChild ?? cell).textContent = '999.9 MB/s';
      for (const cell of document.querySelectorAll('td.age')) cell.textContent = '59 m 59 s';
      const figures = document.querySelectorAll('.n, .kind, .when, dt, dd, thead th');
      const cut = [...figures].filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.textContent);
      const wide = document.scrollingElement.scrollWidth - innerWidth;
      const out = [...document.body.querySelectorAll('*')]
        .filter((node) => node.getBoundingClientRect().right > innerWidth + edge).map(name);
      return { wide, cut: cut.slice(0, 5), out: out.slice(0, 5) };
    },
    /// The numbers at the top of the page.
    numbers: () => Object.fromEntries(['open', 'connected', 'refused', 'up', 'down']
      .map((id) => [id, document.getElementById(id).textContent])),
  };
})();
