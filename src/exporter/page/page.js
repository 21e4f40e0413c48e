// The page: it shows what the stream sends, and sends nothing.

const at = (id) => document.getElementById(id);

const FIGURES = [
    ["Clients", ({ figures: f }) => [count(f.clients), `of at most ${count(f.max_clients)}`]],
    ["Requests a second", ({ figures: f }) => [rate(f.requests), `errors ${rate(f.errors)}`]],
    ["Latency p50", ({ figures: f }) => [duration(f.p50), "of the last 10 s"]],
    ["Latency p99", ({ figures: f }) => [duration(f.p99), "of the last 10 s"]],
    ["Workers ready", ({ figures: f }) => [count(f.ready), `of ${count(f.wanted)}`]],
    ["Executing", ({ figures: f }) => [count(f.executing), `waiting ${count(f.waiting)}`]],
    ["Accept queue", ({ figures: f, totals: t }) => [count(f.queue), `clients refused ${count(t.refused)}`]],
    ["Moves", ({ totals: t }) => [count(t.moved), `clients lost ${count(t.lost)}`]],
    ["Deaths", ({ totals: t }) => [count(t.deaths), "of workers"]],
    ["Requests", ({ totals: t }) => [count(t.requests), `errors ${count(t.errors)}`]],
];

// The columns of the workers: heading, value to sort by, text, and the class of a cell.
const COLUMNS = [
    ["seat", (w) => w.seat, (w) => id(w.seat)],
    ["worker", (w) => w.id, (w) => id(w.id)],
    ["state", (w) => w.state, (w) => (w.reason ? `${w.state}: ${w.reason}` : w.state), "word state"],
    ["clients", (w) => w.clients, (w) => count(w.clients)],
    ["executing", (w) => w.executing, (w) => count(w.executing)],
    ["waiting", (w) => w.waiting, (w) => count(w.waiting)],
    ["busy", (w) => w.busy, (w) => share(w.busy)],
    ["requests/s", (w) => w.requests, (w) => rate(w.requests)],
    ["p50", (w) => w.p50, (w) => duration(w.p50)],
    ["p99", (w) => w.p99, (w) => duration(w.p99)],
    ["memory", (w) => w.memory, (w) => memory(w.memory)],
    ["up", (w) => w.uptime, (w) => period(w.uptime)],
    ["restarts", (w) => w.restarts, (w) => count(w.restarts)],
    ["app", (w) => w.app, (w) => w.app ?? "", "word app"],
];

const MAX_EVENTS = 100;

const points = new Points();
const plots = PLOTS.map((plot) => new Plot(plot));
const figures = FIGURES.map(([label, read]) => ({ label, read, value: element("b"), more: element("span") }));
const rows = new Map();
let workers = [];
let order = { column: 0, isDescending: false };
// The time that the plots are read at; null for now.
let cursor = null;
// The events in the list, by number and time: a daemon may count from 1 again.
const listed = new Set();
// Whether the events of the next update have happened just now.
let isFollowing = false;
let lastDrawn = 0;
let frame = 0;

function showState({ is_reloading, unready, paused, warnings, ...daemon }) {
    document.title = daemon.name;
    setText(at("name"), daemon.name);
    setText(at("version"), daemon.version);
    setText(at("facts"), `generation ${id(daemon.generation)}, up ${period(daemon.uptime)}`);
    const words = is_reloading && !unready ? "serving, reloading" : "serving";
    setState(unready ? "bad" : "good", unready ?? words);
    const notices = [...(paused ? [`no new clients: ${paused}`] : []), ...warnings];
    const list = at("notices");
    while (list.children.length > notices.length) list.lastChild.remove();
    notices.forEach((notice, index) => setText(list.children[index] ?? list.appendChild(element("li")), notice));
}

function setState(className, text) {
    at("state").className = className;
    setText(at("state"), text);
    // Without a countdown, which a screen reader would read each second.
    setText(at("announced-state"), text.replace(/ in \d+ s$/, ""));
}

function showFigures(update) {
    for (const { read, value, more } of figures) {
        const [text, rest] = read(update);
        setText(value, text);
        setText(more, rest);
    }
}

function showWorkers() {
    const value = COLUMNS[order.column][1];
    const sign = order.isDescending ? -1 : 1;
    const sorted = [...workers].sort((a, b) => sign * compare(value(a), value(b)) || a.seat - b.seat);
    const keys = new Set();
    sorted.forEach((worker, index) => {
        const key = `${worker.seat} ${worker.id}`;
        keys.add(key);
        const row = rows.get(key) ?? makeRow(key);
        row.dataset.state = worker.state;
        COLUMNS.forEach(([, , text], column) => setText(row.children[column], text(worker)));
        if (at("workers").children[index] !== row) at("workers").insertBefore(row, at("workers").children[index] ?? null);
    });
    at("table").classList.toggle("without-apps", workers.every(({ app }) => !app));
    for (const [key, row] of rows) {
        if (!keys.has(key)) {
            row.remove();
            rows.delete(key);
        }
    }
}

// Unknown values are below all others.
function compare(a, b) {
    if (a === null || b === null) return (a !== null) - (b !== null);
    return a < b ? -1 : Number(a > b);
}

function makeRow(key) {
    const row = element("tr");
    COLUMNS.forEach(([, , , className], column) => {
        const cell = element(column === 0 ? "th" : "td", className);
        if (column === 0) cell.scope = "row";
        row.append(cell);
    });
    rows.set(key, row);
    return row;
}

function showEvents(events, isNew) {
    const list = at("events");
    for (const event of events) {
        const key = `${event.id} ${event.at}`;
        if (listed.has(key)) continue;
        listed.add(key);
        const date = new Date(1000 * event.at);
        const time = element("time", "", clockTime(date));
        time.dateTime = date.toISOString();
        time.title = date.toLocaleString();
        const item = element("li", event.level, time, element("span", "", event.text));
        item.dataset.key = key;
        list.prepend(item);
        if (isNew && event.level !== "info") setText(at("announced-event"), event.text);
    }
    while (list.children.length > MAX_EVENTS) {
        listed.delete(list.lastChild.dataset.key);
        list.lastChild.remove();
    }
}

function drawPlots() {
    if (document.hidden) return;
    lastDrawn = performance.now();
    const minutes = points.period();
    setText(at("period"), { 1: "The last minute", 60: "The last hour" }[minutes] ?? `The last ${minutes} minutes`);
    for (const plot of plots) plot.draw(points.all, minutes);
    drawCursor();
}

// Draws the plots after an update. A second of a long period is less than a pixel.
function updatePlots() {
    if (points.period() < 15 || performance.now() - lastDrawn >= 5_000) drawPlots();
}

// Draws the line at the cursor, and the figures there.
function drawCursor() {
    const point = cursor === null ? null : nearest(cursor);
    for (const plot of plots) plot.mark(point, points.all.at(-1));
}

function nearest(time) {
    const distance = (point) => Math.abs(point.time - time);
    return points.all.reduce((best, point) => (best && distance(best) <= distance(point) ? best : point), null);
}

function moveCursor(time) {
    cursor = time;
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(drawCursor);
}

// Moves the cursor to the next point or the one before.
function stepCursor(step) {
    const all = points.all;
    const index = cursor === null ? all.length - 1 : all.indexOf(nearest(cursor)) + step;
    moveCursor(all[Math.min(Math.max(index, 0), all.length - 1)]?.time ?? null);
}

function listen(plot) {
    plot.canvas.addEventListener("pointermove", (event) => moveCursor(plot.timeAt(event, points.period())));
    plot.canvas.addEventListener("pointerleave", () => moveCursor(null));
    plot.canvas.addEventListener("blur", () => moveCursor(null));
    plot.canvas.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step) {
            event.preventDefault();
            stepCursor(step);
        } else if (event.key === "Escape") {
            moveCursor(null);
        }
    });
}

function sortBy(column, isDescending) {
    order = { column, isDescending };
    for (const cell of at("columns").children) cell.removeAttribute("aria-sort");
    at("columns").children[column].setAttribute("aria-sort", isDescending ? "descending" : "ascending");
    showWorkers();
}

function build() {
    for (const { label, value, more } of figures) {
        at("figures").append(element("div", "", element("dt", "", label), element("dd", "", value, more)));
    }
    COLUMNS.forEach(([heading, , , className], column) => {
        const button = element("button", "", heading);
        button.type = "button";
        // Of figures, the greatest are first.
        const isDescending = () => (order.column === column ? !order.isDescending : column > 2);
        button.addEventListener("click", () => sortBy(column, isDescending()));
        const cell = element("th", className, button);
        cell.scope = "col";
        at("columns").append(cell);
    });
    at("plots").append(...plots.map(({ figure }) => figure));
    plots.forEach(listen);
    sortBy(0, false);
    addEventListener("resize", drawPlots);
    document.addEventListener("visibilitychange", drawPlots);
}

build();
follow({
    history({ page, span, points: received, events }) {
        // This script may not know the events of another version.
        if (page !== document.querySelector("meta[name=version]").content) {
            setTimeout(() => location.reload(), RETRY);
            throw new StreamEnd("the daemon has another version; loading this page again");
        }
        points.replace(received, span);
        showEvents(events, false);
        isFollowing = false;
        drawPlots();
    },
    update({ daemon, points: received, events }) {
        document.body.classList.remove("stale");
        showState(daemon);
        showFigures(daemon);
        workers = daemon.workers;
        showWorkers();
        // The first update of a new exporter has earlier events.
        showEvents(events, isFollowing);
        isFollowing = true;
        for (const point of received) points.add(point);
        updatePlots();
    },
    trouble({ message }) {
        this.lost(message);
    },
    lost(message) {
        document.body.classList.add("stale");
        setState("bad", message);
    },
});
