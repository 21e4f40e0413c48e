// The state of the process as a whole: descriptor, signals, log.

import { fstatSync, writeSync } from 'node:fs';
import { relative } from 'node:path';
import { inspect } from 'node:util';

/** The descriptor of the worker, or null if fdpassd did not start this process. */
export const descriptor = process.env.FDPASSD_APP === undefined ? null : Number(process.env.FDPASSD_APP);

/** The longest frame that the worker accepts, in bytes. */
export const maxFrame = Number(process.env.FDPASSD_MAX_FRAME) || Infinity;

if (descriptor !== null) {
  // Programs that this one starts are not apps of the daemon. Node.js has made the descriptor close-on-exec already.
  delete process.env.FDPASSD_APP;
  delete process.env.FDPASSD_MAX_FRAME;
  // The program should fork the apps of all workers.
  if (process.env.FDPASSD_PRELOAD !== undefined) refuse('Node.js cannot fork its runtime: remove app.preload');
  // The worker decides when the app ends, by the end of the descriptor. The service manager sends signals to all
  // processes at a restart. Node.js undoes it if a signal is ignored from outside.
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => {});
  // Without a reader of the log, each line would end the process.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
}

function refuse(failed) {
  const body = Buffer.from(JSON.stringify({ failed }));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(body.length);
  try {
    writeSync(descriptor, Buffer.concat([length, body]));
  } finally {
    process.exit(1);
  }
}

export function isSocket(fd) {
  try {
    return fstatSync(fd).isSocket();
  } catch {
    return false;
  }
}

/** Writes an error with its stack to the log. Each line is a record, with its level as in sd-daemon(3). */
export function logError(what, thrown) {
  let text;
  try {
    text = inspect(thrown);
  } catch {
    text = 'a value that cannot be printed';
  }
  process.stderr.write(`${what}: ${text}`.replace(/^/gm, '<3>') + '\n');
}

/** Returns the command that starts this program, as a shell takes it. */
export function ownCommand() {
  const [, script, ...rest] = process.argv;
  const words = ['node', ...process.execArgv, ...(script === undefined ? [] : [relative('', script) || script]), ...rest];
  return words.map((word) => (/^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(' ');
}
