// Codes that only the daemon sends. `bad_params`, `internal` and `crashed` are the daemon's, too, but methods may use
// them.
const RESERVED = new Set(['bad_request', 'unknown_method', 'too_large', 'timeout', 'overloaded', 'shutting_down']);
const CODE = /^[a-z][a-z0-9_]{0,63}$/;

// Longer messages are cut: a frame must not exceed the limit of the worker.
const MAX_MESSAGE = 1000;

export class Fault extends Error {
  constructor(code, message = '') {
    if (typeof code !== 'string' || !CODE.test(code)) {
      throw new RangeError(`${JSON.stringify(code)} is not a valid code: [a-z][a-z0-9_]{0,63}`);
    }
    if (RESERVED.has(code)) throw new RangeError(`the code ${JSON.stringify(code)} is reserved for the daemon`);
    super(String(message));
    this.code = code;
  }

  get name() {
    return 'Fault';
  }
}

export function isFault(thrown) {
  try {
    return thrown instanceof Fault;
  } catch {
    return false; // a Proxy
  }
}

/** Returns whether this was thrown because a signal was aborted for this reason: Node's functions wrap the reason. */
export function isAbort(thrown, reason) {
  try {
    return thrown === reason || (thrown.name === 'AbortError' && thrown.cause === reason);
  } catch {
    return false; // a Proxy, null or undefined
  }
}

/** Returns the class of a thrown value. Its message is not for clients: it may contain secrets. */
export function className(thrown) {
  try {
    const { name } = thrown.constructor;
    return String(name === 'DOMException' ? thrown.name : name).slice(0, 100).toWellFormed();
  } catch {
    return 'Error';
  }
}

/** Returns class and message of a thrown value, for operators. */
export function describe(thrown) {
  try {
    return `${className(thrown)}: ${thrown instanceof Error ? thrown.message : thrown}`;
  } catch {
    return className(thrown);
  }
}

/** Returns a text that the worker accepts: not too long, and without half of a surrogate pair, which is not UTF-8. */
export function cut(text) {
  return (text.length > MAX_MESSAGE ? `${text.slice(0, MAX_MESSAGE)}…` : text).toWellFormed();
}
