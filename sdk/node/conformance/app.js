// The app with which `fdpassctl app check` checks this library.
//
//   fdpassctl app check -- node conformance/app.js

import { spawn } from 'node:child_process';
import { readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { App, Fault, Raw } from 'fdpassd';

const app = new App({ name: 'conformance', version: '1', concurrency: 64 });

const echoes = app.counter('check_echoes', 'Calls of check_echo.');
const lengths = app.histogram('check_lengths', 'The lengths of their params.', [10, 100, 1000]);
app.onClose((client) => console.error(`<7>client ${client} has left`));

app.method('check_echo', { idempotent: true }, (_, call) => {
  const params = call.rawParams ?? 'null';
  echoes.add();
  lengths.observe(params.length);
  return new Raw(params);
});

// Waits for milliseconds, unless the call is cancelled before.
app.method('check_sleep', { idempotent: true }, async (ms, call) => {
  await sleep(ms, undefined, { signal: call.signal });
  return ms;
});

app.method('check_fault', (params) => {
  throw new Fault(params?.code ?? 'check_failed', params?.message ?? 'a fault on purpose');
});

app.method('check_crash', () => {
  throw new RangeError('a crash on purpose');
});

app.method('check_null', () => undefined);

app.method('check_print', (params) => {
  console.log(params ?? 'a line on standard output');
  console.error('<4>a line on standard error');
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
