// One app with everything.

import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';

import { App, Fault, Raw } from 'fdpassd';

const app = new App({ name: 'all', version: '2', concurrency: 100 });
const orders = app.counter('orders', 'Orders.');
const seconds = app.histogram('seconds', 'Seconds.', [0.1, 1]);
let started = 0;

app.start(() => {
  started++;
  orders.add(2);
});
app.start(async () => {
  await null;
  started++;
});
app.stop(async () => {
  await new Promise((resolve) => setTimeout(resolve, 50));
  console.error('stopped');
});
app.onClose((client) => console.error(`client ${client} has left`));
app.onClose(async () => {
  throw new Error('closing failed');
});

app.method('echo', { idempotent: true, reply: 'echoed' }, (params) => params);
app.method('echo_later', async (params) => params);
app.method('raw', (_, call) => new Raw(call.rawParams ?? '"none"'));
app.method('started', () => started);
app.method('call', (_, call) => {
  const { method, client, peer, pid, uid, gid, attempt, remaining, isCancelled } = call;
  return { method, client, peer, pid, uid, gid, attempt, remaining, isCancelled, deadline: call.deadline };
});
app.method('sleep', (ms) => new Promise((resolve) => setTimeout(() => resolve(ms), ms)));
app.method('wait', (_, call) => {
  return new Promise((_, reject) => {
    call.signal.addEventListener('abort', () => {
      console.error(`cancelled: ${call.signal.reason.name} ${call.isCancelled}`);
      reject(call.signal.reason);
    });
  });
});
app.method('wait_by_timer', (_, call) => sleep(60_000, undefined, { signal: call.signal }));
app.method('wait_then_fail', async (_, call) => {
  await sleep(60_000, undefined, { signal: call.signal }).catch(() => {});
  throw new Error('the undo failed', { cause: call.signal.reason });
});
app.method('wait_then_look', async (ms, call) => {
  await new Promise((resolve) => setTimeout(resolve, ms));
  return { isAborted: call.signal.aborted, name: call.signal.reason?.name };
});
app.method('fault', (params) => {
  throw new Fault(params.code, params.message);
});
app.method('crash', () => {
  throw new RangeError('the secret');
});
app.method('crash_later', async () => {
  throw new TypeError('the secret');
});
app.method('throw_value', (params) => {
  throw params;
});
app.method('throw_evil', () => {
  throw new Proxy({}, { get: () => { throw new Error('evil'); }, getPrototypeOf: () => { throw new Error('evil'); } });
});
app.method('evil_then', () => ({ get then() { throw new RangeError('evil'); } }));
app.method('twice', () => ({ then(resolve) { resolve(1); resolve(2); } }));
app.method('nothing', () => {});
app.method('bigint', () => 2n ** 64n);
app.method('bigints', () => ({ a: [-(2n ** 70n), 1.5], b: 'bigint-:12', c: new Date(0) }));
app.method('circular', () => {
  const object = {};
  object.self = object;
  return object;
});
app.method('function', () => () => {});
app.method('long', (length) => 'x'.repeat(length));
app.method('wide', (length) => '€'.repeat(length));
app.method('long_fault', () => {
  throw new Fault('long', 'x'.repeat(10_000_000));
});
app.method('count', (by) => {
  orders.add(by);
  seconds.observe(0.25);
  return null;
});
app.method('observe_many', (count) => {
  for (let i = 0; i < count; i++) seconds.observe(i);
});
app.method('observe_sevenths', (count) => {
  for (let i = 0; i < count; i++) seconds.observe(i / 7);
});
app.method('health', (reason) => (reason === null ? app.healthy() : app.unhealthy(reason)));
app.method('long_then_exit', (length) => {
  setImmediate(() => process.exit(7));
  return 'x'.repeat(length);
});
app.method('exit_in_turn', (code) => {
  queueMicrotask(() => process.exit(code));
  return 'last';
});
app.method('throw_outside', () => {
  setImmediate(() => {
    throw new Error('outside');
  });
  return 'before';
});
app.method('print', (count) => {
  for (let i = 0; i < count; i++) console.log(`${i} ${'x'.repeat(200)}`);
});
app.method('environment', () => Object.keys(process.env).filter((name) => name.startsWith('FDPASSD_')));
app.method('spawn', async () => {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  await new Promise((resolve) => child.on('spawn', resolve));
  return child.pid;
});
app.method('terminate', async () => {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  const exit = new Promise((resolve) => child.on('exit', (status, signal) => resolve(signal)));
  child.kill('SIGTERM');
  return exit;
});

app.run();
