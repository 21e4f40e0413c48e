// Plots of the points of the last hour, as SVG. A point whose `requests` are null has no interval before it: a gap.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 52, right: 6, top: 6, bottom: 18 };
// The most workers with an area of their own; the others share one.
const MAX_AREAS = 16;
// The least distance of two points of an area, in pixels.
const AREA_STEP = 2;
// The periods that a plot may show, in minutes: the shortest that has all points.
const PERIODS = [1, 5, 15, 30, 60];

function svg(name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
}

// The least difference of the clocks that is a suspension, in seconds: the time of day is corrected by less.
const SUSPENDED = 5;

// Keeps the points of the last hour. Their times are those of this page's clock, in seconds.
class Points {
    all = [];

    // Replaces what the server still has. Older points are of an exporter that is gone.
    replace(points, span) {
        this.span = span;
        this.#adjust();
        const received = points.map((point) => Points.#timed(point));
        const begin = received[0]?.time ?? Infinity;
        const older = this.all.filter((point) => point.time < begin - 1);
        this.all = [...older.map((point) => ({ ...point, number: null })), ...received];
        this.#prune();
    }

    // Adds a point. It replaces the last one if that has the same number.
    add(point) {
        this.#adjust();
        if (this.all.at(-1)?.number === point.number) this.all.pop();
        this.all.push(Points.#timed(point));
        this.#prune();
    }

    // Moves all points into the past by the time for which this machine was suspended. The clock of this page may have
    // stood still then, and the time of day has not.
    #adjust() {
        const offset = Date.now() / 1000 - performance.now() / 1000;
        const suspended = offset - (this.offset ?? offset);
        this.offset = offset;
        if (suspended > SUSPENDED) this.all = this.all.map((point) => ({ ...point, time: point.time - suspended }));
    }

    #prune() {
        const begin = performance.now() / 1000 - this.span;
        this.all = this.all.filter(({ time }) => time >= begin);
    }

    // The period to show, in minutes.
    period() {
        const age = performance.now() / 1000 - (this.all[0]?.time ?? Infinity);
        return PERIODS.find((minutes) => 60 * minutes >= age) ?? PERIODS.at(-1);
    }

    static #timed(point) {
        return { ...point, time: performance.now() / 1000 - point.age };
    }
}

// Returns the scale from 0 to a round number that is not below `max`, and its three labels.
function linear(max) {
    const step = 10 ** Math.floor(Math.log10(Math.max(max, 1)));
    const top = step * [1, 2, 5, 10].find((factor) => factor * step >= max);
    return { share: (value) => value / top, labels: [0, top / 2, top] };
}

// Returns the scale of powers of ten that has all values: durations differ by orders of magnitude.
function logarithmic(values) {
    const logs = values.filter((value) => value > 0).map(Math.log10);
    const [low, high] = logs.length > 0 ? [Math.min(...logs), Math.max(...logs)] : [-5, -3];
    const begin = Math.floor(low);
    const end = Math.max(Math.ceil(high), begin + 1);
    const labels = Array.from({ length: end - begin + 1 }, (_, index) => 10 ** (begin + index));
    return { share: (value) => (Math.log10(value) - begin) / (end - begin), labels };
}

// A plot: its figure, and what it draws. `parts` returns the SVG of the points within a frame.
class Plot {
    constructor({ title, format, read, scale, parts }) {
        Object.assign(this, { title, format, read, scale, parts });
        this.values = element("span");
        this.canvas = svg("svg", { role: "img", tabindex: "0" });
        this.figure = element("figure", "", element("figcaption", "", element("b", "", title), this.values), this.canvas);
    }

    // Draws the points of a period.
    draw(points, minutes) {
        const { clientWidth: width, clientHeight: height } = this.canvas;
        if (width === 0) return;
        const frame = new Frame(width, height, 60 * minutes);
        frame.scale = this.scale(points, frame);
        const parts = [...frame.axes(this.format, minutes), ...this.parts(points, frame), ...frame.deaths(points)];
        this.frame = frame;
        this.canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
        this.canvas.replaceChildren(...parts);
    }

    // Draws a line at the point of the cursor, and shows its figures; without a cursor those of the last point.
    mark(cursor, last) {
        this.canvas.querySelector(".cursor")?.remove();
        if (cursor && this.frame) this.canvas.append(this.frame.vertical(cursor.time, "cursor"));
        const shown = cursor ?? last;
        const text = shown ? this.read(shown) : "no data yet";
        setText(this.values, cursor && this.frame ? `${clockTime(this.frame.date(cursor.time))}: ${text}` : text);
        // Without a cursor the label stays, so that a screen reader does not read it each second.
        const label = cursor ? this.values.textContent : `last ${(this.frame?.seconds ?? 60) / 60} min`;
        this.canvas.setAttribute("aria-label", `${this.title}, ${label}`);
    }

    // Returns the time below a pointer.
    timeAt(event, minutes) {
        const box = this.canvas.getBoundingClientRect();
        const width = box.width - MARGIN.left - MARGIN.right;
        const share = (event.clientX - box.left - MARGIN.left) / width;
        return performance.now() / 1000 - 60 * minutes * (1 - share);
    }
}

// The coordinates of a plot.
class Frame {
    constructor(width, height, seconds) {
        Object.assign(this, { width, height, seconds });
        this.now = performance.now() / 1000;
        this.bottom = height - MARGIN.bottom;
    }

    get inner() {
        return this.width - MARGIN.left - MARGIN.right;
    }

    x(time) {
        return MARGIN.left + this.inner * (1 - (this.now - time) / this.seconds);
    }

    // Returns the time of day of a time of this page's clock.
    date(time) {
        return new Date(Date.now() - 1000 * (this.now - time));
    }

    y(value) {
        const share = Math.min(1, Math.max(0, this.scale.share(value)));
        return this.bottom - (this.bottom - MARGIN.top) * share;
    }

    place(time, value) {
        return `${this.x(time).toFixed(1)},${this.y(value).toFixed(1)}`;
    }

    vertical(time, className) {
        const x = this.x(time).toFixed(1);
        return svg("line", { class: className, x1: x, x2: x, y1: MARGIN.top, y2: this.bottom });
    }

    deaths(points) {
        return points.filter((point) => point.deaths > 0).map((point) => this.vertical(point.time, "death"));
    }

    *axes(format, minutes) {
        for (const value of this.scale.labels) {
            const y = this.y(value);
            yield svg("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y });
            yield svg("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, format(value));
        }
        const y = this.height - 4;
        yield svg("text", { x: MARGIN.left, y }, `${minutes} min ago`);
        yield svg("text", { x: this.width - MARGIN.right, y, "text-anchor": "end" }, "now");
    }
}

// Splits points where there is a gap.
function runs(points) {
    const found = [];
    for (const point of points) {
        if (point.requests === null || found.length === 0) found.push([]);
        found.at(-1).push(point);
    }
    return found;
}

// Draws a line through the values of a figure. A point alone is a dot.
function line(points, frame, figure, className) {
    let path = "";
    for (const run of runs(points)) {
        let pen = "M";
        for (const point of run) {
            const value = point[figure];
            if (value === null) {
                pen = "M";
                continue;
            }
            path += `${pen}${frame.place(point.time, value)}`;
            if (pen === "M") path += "h.1";
            pen = "L";
        }
    }
    return svg("path", { class: `line ${className}`, d: path });
}

// Draws the clients of the workers one above the other.
function stack(points, frame) {
    const seats = Math.max(0, ...points.map(({ clients }) => clients.length));
    const areas = Math.min(seats, MAX_AREAS);
    const paths = Array(areas).fill("");
    for (const run of runs(points).map((all) => thinned(all, frame)).filter(({ length }) => length > 1)) {
        let below = run.map(() => 0);
        for (let area = 0; area < areas; area++) {
            // The last area has all other workers.
            const end = area === areas - 1 ? seats : area + 1;
            const above = run.map(({ clients }, index) => below[index] + total(clients.slice(area, end)));
            const edge = (values) => run.map(({ time }, index) => frame.place(time, values[index]));
            paths[area] += `M${edge(above).join("L")}L${edge(below).reverse().join("L")}Z`;
            below = above;
        }
    }
    return paths.map((d, area) => svg("path", { class: `stack s${area % 8}`, d }));
}

// Leaves out points that are nearer to the one before than a step. The first and the last one stay.
function thinned(points, frame) {
    let last = -Infinity;
    return points.filter(({ time }, index) => {
        const x = frame.x(time);
        if (x - last < AREA_STEP && index < points.length - 1) return false;
        last = x;
        return true;
    });
}

// The width of a bar.
const BAR = 4;

// Draws moves as bars.
function bars(points, frame) {
    const path = [...movesByTime(points, frame)].map(([time, moves]) => {
        const [x, y] = frame.place(time, moves).split(",");
        return `M${x},${frame.bottom}V${y}h${1 - BAR}V${frame.bottom}Z`;
    });
    return [svg("path", { class: "bar", d: path.join("") })];
}

// Returns the moves in each time that is as long as a bar is wide, by its end.
function movesByTime(points, frame) {
    const length = (BAR * frame.seconds) / frame.inner;
    const sums = new Map();
    for (const { time, moved } of points.filter((point) => point.moved > 0)) {
        const end = Math.ceil(time / length) * length;
        sums.set(end, (sums.get(end) ?? 0) + moved);
    }
    return sums;
}

function greatest(points, value) {
    return Math.max(0, ...points.map((point) => value(point) ?? 0));
}

function total(numbers) {
    return numbers.reduce((sum, number) => sum + number, 0);
}

const PLOTS = [
    {
        title: "Requests a second",
        format: short,
        read: ({ requests, errors }) => `${rate(requests)}, errors ${rate(errors)} (dashed)`,
        scale: (points) => linear(greatest(points, ({ requests }) => requests)),
        parts: (points, frame) => [line(points, frame, "requests", "a"), line(points, frame, "errors", "b")],
    },
    {
        title: "Latency",
        format: duration,
        read: ({ p50, p99 }) => `p50 ${duration(p50)}, p99 ${duration(p99)} (dashed)`,
        scale: (points) => logarithmic(points.flatMap(({ p50, p99 }) => [p50, p99])),
        parts: (points, frame) => [line(points, frame, "p50", "a"), line(points, frame, "p99", "b")],
    },
    {
        title: "Clients by worker",
        format: short,
        read: ({ clients }) => `${plural(total(clients), "client")}${clients.length > 8 ? "" : `: ${clients.join(" + ")}`}`,
        scale: (points) => linear(greatest(points, ({ clients }) => total(clients))),
        parts: stack,
    },
    {
        title: "Moves and deaths",
        format: short,
        read: ({ moved, deaths }) => `moves ${count(moved)}, deaths ${count(deaths)}`,
        scale: (points, frame) => linear(Math.max(0, ...movesByTime(points, frame).values())),
        parts: bars,
    },
];
