import { Call } from './call.js';
import { Channel } from './channel.js';
import { className, cut, describe, isAbort, isFault } from './fault.js';
import { encode } from './json.js';
import { halves, Metrics } from './metrics.js';
import { descriptor, isSocket, logError, maxFrame, ownCommand } from './process.js';

const METHOD = /^[a-z][a-z0-9_.-]{0,63}$/;
const MAX_CONCURRENCY = 4096;
// How long the functions of `stop` may run if the worker has ended without a `stop`.
const END_GRACE = 1000;
// The longest time that setTimeout takes.
const MAX_TIMER = 2 ** 31 - 1;
// Exit codes of sysexits.h.
const EX_USAGE = 64;
const EX_PROTOCOL = 76;

export class App {
  #options;
  #methods = new Map();
  #onStart = [];
  #onStop = [];
  #onClose = [];
  #checks = [];
  #metrics = new Metrics(() => this.#channel?.schedule());
  #health = null;

  #isRunning = false;
  #hasGreeted = false;
  #channel = null;
  // Calls that have no answer yet.
  #calls = new Map();
  #isStopping = false;
  #stopsBy = 0;
  #finishing = null;

  constructor({ concurrency = 64, name, version } = {}) {
    if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > MAX_CONCURRENCY) {
      throw new RangeError(`concurrency must be an integer from 1 to ${MAX_CONCURRENCY}`);
    }
    this.#options = { concurrency, name, version };
  }

  method(name, options, fn) {
    if (typeof options === 'function') [options, fn] = [{}, options];
    if (typeof fn !== 'function') throw new TypeError(`the method ${JSON.stringify(name)} must be a function`);
    this.#mustNotRun();
    checkName('method', name);
    if (name === 'ping' || name === 'methods') throw new Error(`the daemon has its own method ${JSON.stringify(name)}`);
    if (this.#methods.has(name)) throw new Error(`duplicate method ${JSON.stringify(name)}`);
    const { idempotent = false, reply } = options ?? {};
    if (reply !== undefined) checkName('reply', reply);
    this.#methods.set(name, { fn, declared: { name, idempotent: Boolean(idempotent), reply } });
    return this;
  }

  start(fn) {
    return this.#add(this.#onStart, fn);
  }

  stop(fn) {
    return this.#add(this.#onStop, fn);
  }

  onClose(fn) {
    return this.#add(this.#onClose, fn);
  }

  #add(functions, fn, every) {
    this.#mustNotRun();
    if (typeof fn !== 'function') throw new TypeError('a function is required');
    functions.push(every === undefined ? fn : { fn, every });
    return this;
  }

  counter(name, help) {
    this.#mustNotRun();
    return this.#metrics.counter(name, help);
  }

  histogram(name, help, buckets) {
    this.#mustNotRun();
    return this.#metrics.histogram(name, help, buckets);
  }

  health(fn, { every = 10_000 } = {}) {
    if (typeof every !== 'number' || !(every > 0)) {
      throw new RangeError('the time between two checks must be a positive number');
    }
    // A timer that is longer would end at once.
    return this.#add(this.#checks, fn, Math.min(every, MAX_TIMER));
  }

  healthy() {
    this.#setHealth(null);
  }

  unhealthy(reason) {
    this.#setHealth(cut(String(reason) || 'unhealthy'));
  }

  #setHealth(health) {
    if (health === this.#health) return;
    this.#health = health;
    if (this.#hasGreeted) this.#sendHealth();
  }

  // A text that is cut may be too long as JSON, in which a control character has six bytes.
  #sendHealth() {
    if (!this.#send({ health: this.#health })) this.#send({ health: 'unhealthy' });
  }

  run() {
    this.#mustNotRun();
    this.#isRunning = true;
    if (descriptor === null) {
      process.stderr.write(`start this app with: fdpassd app -- ${ownCommand()}\n`);
      process.exit(EX_USAGE);
    }
    if (!isSocket(descriptor)) {
      process.stderr.write(`descriptor ${descriptor}, which FDPASSD_APP names, is not a socket\n`);
      process.exit(EX_USAGE);
    }
    this.#channel = new Channel(descriptor, maxFrame, this.#receive, this.#end);
    this.#serve();
  }

  #mustNotRun() {
    if (this.#isRunning) throw new Error('the app is running already');
  }

  async #serve() {
    for (const fn of this.#onStart) {
      try {
        await fn();
      } catch (error) {
        return this.#failStart(error);
      }
    }
    const hello = {
      hello: 1,
      methods: Array.from(this.#methods.values(), ({ declared }) => declared),
      ...this.#options,
      closes: this.#onClose.length > 0,
      metrics: this.#metrics.declared,
    };
    if (!this.#send(hello)) return this.#failStart(new Error('the list of methods is longer than a frame may be'));
    this.#hasGreeted = true;
    if (this.#health !== null) this.#sendHealth();
    this.#channel.beforeWrite = () => {
      for (const metrics of this.#metrics.take()) this.#sendMetrics(metrics);
    };
    this.#channel.schedule();
    for (const { fn, every } of this.#checks) this.#check(fn, every);
  }

  /** Calls a function of `health` until the process ends. */
  async #check(fn, every) {
    let reason;
    try {
      reason = await fn();
    } catch (error) {
      reason = describe(error);
    }
    if (reason === undefined || reason === null) this.healthy();
    else this.unhealthy(reason);
    setTimeout(() => this.#check(fn, every), every);
  }

  #failStart(error) {
    logError('the app cannot start', error);
    // As for health: the log has the reason.
    if (!this.#send({ failed: cut(describe(error)) })) this.#send({ failed: 'the app cannot start; its log has the reason' });
    process.exit(1);
  }

  /** Sends an object, and returns false if it is too long. */
  #send(object) {
    return this.#channel.send(JSON.stringify(object));
  }

  /** Sends metrics, in several frames if one would be too long. */
  #sendMetrics(metrics) {
    if (!this.#send({ metrics })) halves(metrics).forEach((half) => this.#sendMetrics(half));
  }

  #receive = (text) => {
    let message;
    try {
      message = JSON.parse(text);
    } catch (error) {
      logError('the worker sent a frame that is not JSON', error);
      process.exit(EX_PROTOCOL);
    }
    if (message.in !== undefined) this.#request(message, text);
    else if (message.cancel !== undefined) this.#cancel(message);
    else if (message.probe !== undefined) this.#send({ alive: message.probe });
    else if (message.closed !== undefined) this.#clientClosed(message.closed);
    else if (message.stop !== undefined) this.#stop(message.stop);
  };

  #request(message, text) {
    const { id } = message;
    const method = this.#methods.get(message.in);
    if (method === undefined) return this.#fault(id, 'internal', `unknown method ${JSON.stringify(message.in)}`);
    const call = new Call(message, text, performance.now());
    let result;
    let isPending = false;
    try {
      result = method.fn(message.params, call);
      isPending = typeof result?.then === 'function';
    } catch (error) {
      return this.#fail(id, call, error);
    }
    if (!isPending) return this.#answer(id, call, result);
    this.#calls.set(id, call);
    const settle = (answer, value) => {
      this.#calls.delete(id);
      answer.call(this, id, call, value);
      if (this.#isStopping && this.#calls.size === 0) this.#finish(this.#stopsBy);
    };
    Promise.resolve(result).then(
      (value) => settle(this.#answer, value),
      (error) => settle(this.#fail, error),
    );
  }

  #answer(id, call, result) {
    let text;
    try {
      text = encode(result);
    } catch (error) {
      logError(`the result of ${call.method} cannot be represented as JSON`, error);
      return this.#fault(id, 'internal', 'the result cannot be represented as JSON');
    }
    if (!this.#channel.send(`{"id":${id},"result":${text}}`)) {
      this.#fault(id, 'internal', 'the result is too long');
    }
  }

  #fail(id, call, error) {
    if (isFault(error)) return this.#fault(id, error.code, error.message);
    // A method that stops because its request was cancelled has no bug.
    if (!(call.isCancelled && isAbort(error, call.signal.reason))) logError(`the method ${call.method} failed`, error);
    this.#fault(id, 'crashed', className(error));
  }

  #fault(id, code, message) {
    const error = { code, message: cut(String(message)) };
    if (!this.#send({ id, error })) this.#send({ id, error: { code, message: '' } });
  }

  #cancel({ cancel, why }) {
    const call = this.#calls.get(cancel);
    if (call !== undefined) Call.cancel(call, why);
  }

  #clientClosed(client) {
    for (const fn of this.#onClose) {
      const failed = (error) => logError('a function of onClose failed', error);
      try {
        fn(client)?.then?.(undefined, failed);
      } catch (error) {
        failed(error);
      }
    }
  }

  #stop(timeout) {
    this.#isStopping = true;
    this.#stopsBy = performance.now() + timeout;
    if (this.#calls.size === 0) this.#finish(this.#stopsBy);
  }

  // If there was a `stop`, its functions still have its time.
  #end = () => {
    this.#finish(this.#isStopping ? this.#stopsBy : performance.now() + END_GRACE);
  };

  /** Calls the functions of `stop` and ends the process, at the latest at this time by performance.now(). */
  #finish(deadline) {
    if (this.#onStop.length === 0) process.exit(0);
    if (this.#finishing !== null) return;
    this.#finishing = this.#callStop();
    setTimeout(() => process.exit(0), Math.min(MAX_TIMER, Math.max(0, deadline - performance.now())));
  }

  async #callStop() {
    for (const fn of this.#onStop) {
      try {
        await fn();
      } catch (error) {
        logError('a function of stop failed', error);
      }
    }
    process.exit(0);
  }
}

function checkName(what, name) {
  if (typeof name !== 'string' || !METHOD.test(name) || name === 'error') {
    throw new TypeError(`${JSON.stringify(name)} is not a valid ${what} name: [a-z][a-z0-9_.-]{0,63}, but not "error"`);
  }
}
