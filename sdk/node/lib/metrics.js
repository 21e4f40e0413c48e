import { inspect } from 'node:util';

const NAME = /^[a-z][a-z0-9_]{0,63}$/;
const DEFAULT_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
// Larger whole numbers are not exact.
const MAX_COUNT = 2 ** 53;
// A frame must not exceed the limit of the worker.
const MAX_OBSERVATIONS = 256;

/** The counters and histograms of an app, and what was added to them since the last frame. */
export class Metrics {
  #declared = [];
  #names = new Set();
  #pending = new Map();
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
  }

  counter(name, help) {
    this.#declare({ name, type: 'counter', help: text(help) });
    return {
      add: (count = 1) => {
        // A comparison alone would accept '5', and the sum would be a string.
        if (!Number.isInteger(count) || count < 0 || count > MAX_COUNT) {
          throw new RangeError(`a counter cannot be increased by ${inspect(count)}`);
        }
        this.#pending.set(name, (this.#pending.get(name) ?? 0) + count);
        this.#onChange();
      },
    };
  }

  histogram(name, help, buckets = DEFAULT_BUCKETS) {
    const bounds = Array.from(buckets, Number);
    if (bounds.some((bound, i) => !Number.isFinite(bound) || (i > 0 && bound <= bounds[i - 1]))) {
      throw new TypeError('the bounds of buckets must be finite and ascending');
    }
    this.#declare({ name, type: 'histogram', help: text(help), buckets: bounds });
    return {
      observe: (value) => {
        if (!Number.isFinite(value)) throw new RangeError(`a histogram cannot observe ${inspect(value)}`);
        const values = this.#pending.get(name);
        if (values === undefined) this.#pending.set(name, [value]);
        else values.push(value);
        this.#onChange();
      },
    };
  }

  #declare(metric) {
    if (typeof metric.name !== 'string' || !NAME.test(metric.name)) {
      throw new TypeError(`${JSON.stringify(metric.name)} is not a valid name of a metric: [a-z][a-z0-9_]{0,63}`);
    }
    if (this.#names.has(metric.name)) throw new Error(`duplicate metric ${JSON.stringify(metric.name)}`);
    this.#names.add(metric.name);
    this.#declared.push(metric);
  }

  get declared() {
    return this.#declared.length === 0 ? undefined : this.#declared;
  }

  /** Returns what was added, by name, as one object for each frame, and forgets it. */
  take() {
    if (this.#pending.size === 0) return [];
    const first = {};
    const frames = [first];
    for (const [name, value] of this.#pending) {
      first[name] = typeof value === 'number' ? Math.min(value, MAX_COUNT) : value.slice(0, MAX_OBSERVATIONS);
      for (let at = MAX_OBSERVATIONS; at < value.length; at += MAX_OBSERVATIONS) {
        frames.push({ [name]: value.slice(at, at + MAX_OBSERVATIONS) });
      }
    }
    this.#pending.clear();
    return frames;
  }
}

/** Returns two halves of an object of `take`, or nothing if it is one number. */
export function halves(metrics) {
  const entries = Object.entries(metrics);
  const middle = (list) => Math.ceil(list.length / 2);
  if (entries.length > 1) {
    const at = middle(entries);
    return [entries.slice(0, at), entries.slice(at)].map(Object.fromEntries);
  }
  const [[name, values]] = entries;
  if (!Array.isArray(values) || values.length < 2) return [];
  const at = middle(values);
  return [{ [name]: values.slice(0, at) }, { [name]: values.slice(at) }];
}

function text(help) {
  return help === undefined ? undefined : String(help);
}
