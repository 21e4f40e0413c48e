import { randomBytes } from 'node:crypto';

/** One JSON value as text, which is copied into the answer as it is. The worker checks it. */
export class Raw {
  #text;

  constructor(text) {
    this.#text = String(text);
  }

  toString() {
    return this.#text;
  }
}

/**
 * Returns the JSON text of a result. `undefined`, which a method without `return` returns, becomes `null`, and a BigInt
 * an exact number.
 *
 * @throws if the result cannot be represented as JSON
 */
export function encode(value) {
  if (value === undefined) return 'null';
  if (value instanceof Raw) return value.toString();
  const text = typeof value === 'bigint' ? String(value) : encodeObject(value);
  if (text === undefined) throw new TypeError(`a ${typeof value} cannot be represented as JSON`);
  return text;
}

function encodeObject(value) {
  try {
    return JSON.stringify(value);
  } catch (error) {
    let hasBigInt = false;
    const text = stringifyExactly(value, () => (hasBigInt = true));
    if (!hasBigInt) throw error;
    return text;
  }
}

// Before Node.js 22 no part of a result can be given as text, so a BigInt is written as a string with a random prefix,
// which is removed afterwards together with the quotes.
let prefix;

function stringifyExactly(value, found) {
  const isNative = typeof JSON.rawJSON === 'function';
  prefix ??= `bigint-${randomBytes(16).toString('hex')}:`;
  const text = JSON.stringify(value, (_, member) => {
    if (typeof member !== 'bigint') return member;
    found();
    return isNative ? JSON.rawJSON(String(member)) : prefix + member;
  });
  return isNative ? text : text?.replace(new RegExp(`"${prefix}(-?[0-9]+)"`, 'g'), '$1');
}

/**
 * Returns the text of the member `params` of a request, or undefined if there is none. `params` is always the last
 * member.
 */
export function findParams(text) {
  let at = skipSpace(text, 1);
  while (text[at] === '"') {
    const end = skipString(text, at);
    const isParams = text.slice(at, end) === '"params"';
    at = skipSpace(text, skipSpace(text, end) + 1); // after the colon
    if (isParams) return text.slice(at, text.lastIndexOf('}')).trimEnd();
    at = skipSpace(text, skipValue(text, at));
    if (text[at] !== ',') break;
    at = skipSpace(text, at + 1);
  }
  return undefined;
}

function skipSpace(text, at) {
  while (text[at] === ' ' || text[at] === '\n' || text[at] === '\t' || text[at] === '\r') at++;
  return at;
}

/** Returns the position after the string that begins at this quote. */
function skipString(text, at) {
  for (at++; at < text.length && text[at] !== '"'; at++) if (text[at] === '\\') at++;
  return at + 1;
}

function skipValue(text, at) {
  let depth = 0;
  while (at < text.length) {
    const letter = text[at];
    if (letter === '"') {
      at = skipString(text, at);
      if (depth === 0) return at;
      continue;
    }
    if (depth === 0 && (letter === ',' || letter === '}')) return at;
    if (letter === '{' || letter === '[') depth++;
    if ((letter === '}' || letter === ']') && --depth === 0) return at + 1;
    at++;
  }
  return at;
}
