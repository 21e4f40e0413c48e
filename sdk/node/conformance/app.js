// The app with which `fdpassctl app check` checks this library.
//
//   fdpassctl app check -- node conformance/app.js

import { spawn } from 'node:child_process';
import { readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { App, Fault, Raw } from 'fdpassd';

const app = new App({ name: 'conformance', version: '1', concurrency: 64 });

app.method('check_echo', { idempotent: true }, (_, call) => new Raw(call.rawParams ?? 'null'));

// Waits for milliseconds, unless the call is cancelled before.
app.method('check_sleep', { idempotent: true }, async (ms, call) => {
  await sleep(ms, undefined, { signal: call.signal });
  return ms;
});

app.method('check_fault', () => {
  throw new Fault('check_failed', 'a fault on purpose');
});

app.method('check_crash', () => {
  throw new RangeError('a crash on purpose');
});

app.method('check_null', () => undefined);

app.method('check_print', () => {
  console.log('check_print on standard output');
  console.error('<4>check_print on standard error');
});

// The child outlives the call.
app.method('check_spawn', async () => {
  const child = spawn('sleep', ['2'], { stdio: 'ignore' });
  await new Promise((resolve, reject) => child.on('spawn', resolve).on('error', reject));
  child.unref();
  let file = '';
  try {
    file = readlinkSync(`/proc/${child.pid}/fd/3`);
  } catch {
    // It is not open.
  }
  // The child may have opened a file with this number.
  return { pid: child.pid, open: file.startsWith('socket:') };
});

app.run();
