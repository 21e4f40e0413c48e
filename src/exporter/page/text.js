"use strict";

// Numbers and times as text. A figure that is not known is a dash.

const UNKNOWN = "–";

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

function known(format) {
    return (value) => (value === null || value === undefined ? UNKNOWN : format(value));
}

// A label of an axis: "20K".
const short = known((number) => compact.format(number));

const count = known((number) => grouped.format(number));
// The number of a worker, as commands and the log have it.
const id = known((number) => String(number));
const rate = known((number) => (number < 100 ? precise.format(number) : grouped.format(number)));
const share = known((number) => `${grouped.format(100 * number)}%`);
const memory = known((bytes) => `${grouped.format(bytes / 2 ** 20)} MiB`);

const duration = known((seconds) => {
    if (seconds < 1e-3) return `${precise.format(1e6 * seconds)} µs`;
    if (seconds < 1) return `${precise.format(1e3 * seconds)} ms`;
    return `${precise.format(seconds)} s`;
});

const period = known((seconds) => {
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    const fits = ([size]) => seconds >= size || size === 1;
    const first = parts.findIndex(fits);
    const [[size, unit], smaller] = [parts[first], parts[first + 1]];
    const whole = `${Math.floor(seconds / size)} ${unit}`;
    const rest = smaller && first < 2 ? Math.floor((seconds % size) / smaller[0]) : 0;
    return rest > 0 ? `${whole} ${rest} ${smaller[1]}` : whole;
});

function plural(number, noun) {
    return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function clockTime(date) {
    return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

// Sets the text of a node. It never becomes markup, and a node whose text stays is left alone: a screen reader would
// read it again.
function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
}

// Makes an element with a class and children, which are nodes or texts.
function element(name, className, ...children) {
    const node = document.createElement(name);
    if (className) node.className = className;
    node.append(...children);
    return node;
}
