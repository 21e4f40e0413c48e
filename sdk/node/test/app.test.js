import assert from 'node:assert/strict';
import { existsSync, readFileSync, readlinkSync } from 'node:fs';
import { createServer, connect } from 'node:net';
import { once } from 'node:events';
import { test } from 'node:test';

import { here, Worker, within } from './worker.js';

/** Starts an app, and waits until it serves. */
async function serving(t, name = 'all', options) {
  const worker = new Worker(t, name, options);
  worker.greeting = await worker.hello();
  return worker;
}

function openFile(pid, fd) {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return '';
  }
}

test('hello lists methods, limits and metrics', async (t) => {
  const { greeting } = await serving(t);
  assert.equal(greeting.hello, 1);
  assert.equal(greeting.concurrency, 100);
  assert.equal(greeting.name, 'all');
  assert.equal(greeting.version, '2');
  assert.equal(greeting.closes, true);
  assert.deepEqual(greeting.methods[0], { name: 'echo', idempotent: true, reply: 'echoed' });
  assert.deepEqual(greeting.methods[1], { name: 'echo_later', idempotent: false });
  assert.deepEqual(greeting.metrics, [
    { name: 'orders', type: 'counter', help: 'Orders.' },
    { name: 'seconds', type: 'histogram', help: 'Seconds.', buckets: [0.1, 1] },
  ]);
});

test('the defaults are 64 requests and no closed frames', async (t) => {
  const worker = await serving(t, 'bare');
  const hello = { hello: 1, methods: [{ name: 'add', idempotent: false }], concurrency: 64, closes: false };
  assert.deepEqual({ ...worker.greeting }, hello);
  assert.equal((await worker.call('add', '{"a":1,"b":2}')).result, 3);
  // Params that the code of a method does not expect cause an exception.
  assert.deepEqual((await worker.call('add')).error, { code: 'crashed', message: 'TypeError' });
  await worker.end();
});

test('functions of start run before hello, in order', async (t) => {
  const worker = await serving(t);
  assert.equal((await worker.call('started')).result, 2);
});

test('answers have the form that the worker parses fastest', async (t) => {
  const worker = await serving(t);
  assert.equal((await worker.call('echo', '[1, {"a":null}]')).text, '{"id":1,"result":[1,{"a":null}]}');
  assert.equal((await worker.call('echo_later', '"é€😀\\u0000"')).result, 'é€😀\0');
  assert.equal((await worker.call('echo', 'null')).text, '{"id":3,"result":null}');
  assert.equal((await worker.call('nothing')).text, '{"id":4,"result":null}');
  assert.equal((await worker.call('echo')).text, '{"id":5,"result":null}');
});

test('raw params and results are exact', async (t) => {
  const worker = await serving(t);
  const exact = '{"n" : 18446744073709551617, "params":[1e400, "a\\"b,\\"params\\":1"] }';
  const { id, text } = worker.body('raw', exact);
  worker.send(text);
  assert.equal((await worker.answer(id)).text, `{"id":${id},"result":${exact}}`);
  for (const params of ['0', '"x"', '[]', '{}', 'true', '"}"']) {
    assert.equal(JSON.stringify((await worker.call('raw', params)).result), params);
  }
  assert.equal((await worker.call('raw')).result, 'none');
  worker.send('{ "id" : 900 , "more":{"params":"no","a":["]"]},"in":"raw" , "client":1, "params" : 12345678901234567890 }');
  assert.match((await worker.answer(900)).text, /"result":12345678901234567890}/);
});

test('parsed integers above 2^53 are not exact', async (t) => {
  const worker = await serving(t);
  assert.match((await worker.call('echo', '9007199254740993')).text, /"result":9007199254740992}/);
});

test('a BigInt is an exact number', async (t) => {
  const worker = await serving(t);
  assert.match((await worker.call('bigint')).text, /"result":18446744073709551616}/);
  assert.match(
    (await worker.call('bigints')).text,
    /"result":{"a":\[-1180591620717411303424,1.5\],"b":"bigint-:12","c":"1970-01-01T00:00:00.000Z"}}/,
  );
});

test('a result that is not JSON is internal', async (t) => {
  const worker = await serving(t);
  const error = { code: 'internal', message: 'the result cannot be represented as JSON' };
  assert.deepEqual((await worker.call('circular')).error, error);
  assert.deepEqual((await worker.call('function')).error, error);
  await worker.logged(/<3>the result of circular cannot be represented as JSON: TypeError/);
  assert.equal((await worker.call('echo', '1')).result, 1);
});

test('params that are nested deeply are answered, and the app continues', async (t) => {
  const worker = await serving(t);
  for (const depth of [1000, 100000]) {
    // At some depth of the stack, JSON.stringify fails where JSON.parse does not.
    const { text } = await worker.call('echo', '['.repeat(depth) + ']'.repeat(depth));
    assert.match(text, /^{"id":\d+,("result":\[+\]+|"error":{"code":"internal",.*})}$/);
  }
  assert.equal((await worker.call('echo', '1')).result, 1);
});

test('a result longer than a frame is internal', async (t) => {
  const worker = await serving(t, 'all', { env: { FDPASSD_MAX_FRAME: '200000' } });
  const error = { code: 'internal', message: 'the result is too long' };
  const fits = 200000 - '{"id":1,"result":""}'.length;
  assert.equal((await worker.call('long', String(fits))).result.length, fits);
  assert.deepEqual((await worker.call('long', String(fits + 1))).error, error);
  assert.deepEqual((await worker.call('wide', '70000')).error, error);
  assert.deepEqual((await worker.call('long', '100000000')).error, error);
  assert.equal((await worker.call('long_fault')).error.message.length, 1001);
});

test('a Fault is the error of the client', async (t) => {
  const worker = await serving(t);
  const fault = (await worker.call('fault', '{"code":"no_such_item","message":"no \\"tea\\""}')).error;
  assert.deepEqual(fault, { code: 'no_such_item', message: 'no "tea"' });
  for (const code of ['bad_params', 'internal', 'crashed']) {
    assert.deepEqual((await worker.call('fault', `{"code":"${code}"}`)).error, { code, message: '' });
  }
  assert.equal(worker.stderr, '');
  for (const code of ['timeout', 'Upper', '', 'x'.repeat(65)]) {
    const { error } = await worker.call('fault', JSON.stringify({ code }));
    assert.deepEqual(error, { code: 'crashed', message: 'RangeError' });
  }
  await worker.logged(/the code "timeout" is reserved for the daemon/);
});

test('an error whose text is longer than a frame is answered without it', async (t) => {
  const worker = await serving(t, 'all', { env: { FDPASSD_MAX_FRAME: '4160' } });
  const control = '\u0001'.repeat(1000);
  const { error } = await worker.call('fault', JSON.stringify({ code: 'out_of_tea', message: control }));
  assert.deepEqual(error, { code: 'out_of_tea', message: '' });
  await worker.call('health', JSON.stringify(control));
  assert.equal((await worker.next((frame) => frame.health !== undefined)).health, 'unhealthy');
});

test('half of a surrogate pair is replaced in texts for the worker', async (t) => {
  const worker = await serving(t);
  for (const message of ['\ud83d!', '\ude00', `${'x'.repeat(999)}😀`]) {
    const { text } = await worker.call('fault', JSON.stringify({ code: 'half', message }));
    assert.match(text, /"message":"x*\ufffd!?…?"/);
  }
  await worker.call('health', '"no \\ud83d"');
  assert.equal((await worker.next((frame) => frame.health)).text, '{"health":"no \ufffd"}');
  await worker.call('health', '""');
  assert.equal((await worker.next((frame) => frame.health !== undefined)).health, 'unhealthy');
  await worker.call('health', 'null');
  const failed = new Worker(t, 'fails', { env: { HALF: '1' } });
  assert.equal((await failed.next()).text, '{"failed":"TypeError: no database \ufffd"}');
});

test('an exception is crashed with its class, and logged', async (t) => {
  const worker = await serving(t);
  assert.deepEqual((await worker.call('crash')).error, { code: 'crashed', message: 'RangeError' });
  assert.deepEqual((await worker.call('crash_later')).error, { code: 'crashed', message: 'TypeError' });
  assert.deepEqual((await worker.call('throw_value', '"text"')).error, { code: 'crashed', message: 'String' });
  assert.deepEqual((await worker.call('throw_value', 'null')).error, { code: 'crashed', message: 'Error' });
  assert.deepEqual((await worker.call('throw_evil')).error, { code: 'crashed', message: 'Error' });
  assert.deepEqual((await worker.call('evil_then')).error, { code: 'crashed', message: 'RangeError' });
  assert.equal((await worker.call('twice')).result, 1);
  await worker.logged(/^<3>the method crash failed: RangeError: the secret\n<3> {4}at .*all\.js/m);
  await worker.logged(/^<3>the method crash_later failed: TypeError: the secret\n<3> {4}at /m);
  assert.ok(worker.stderr.split('\n').every((line) => line === '' || line.startsWith('<3>')), worker.stderr);
});

test('an unknown method is internal', async (t) => {
  const worker = await serving(t);
  const error = { code: 'internal', message: 'unknown method "__proto__"' };
  assert.deepEqual((await worker.call('__proto__', '1')).error, error);
});

test('a method learns about its call', async (t) => {
  const worker = await serving(t);
  const { remaining, deadline, ...call } = (await worker.call('call', '1', { attempt: 2 })).result;
  const expected = { method: 'call', client: 4711, peer: '10.0.0.9:4242', attempt: 2, isCancelled: false };
  assert.deepEqual(call, expected);
  assert.ok(remaining > 20000 && remaining <= 30000, remaining);
  assert.ok(Math.abs(deadline - Date.now() - 30000) < 10000, deadline);
  const unix = { client: 1, peer: '', pid: 7, uid: 1000, gid: 100, timeout: undefined, attempt: undefined };
  const result = (await worker.call('call', undefined, unix)).result;
  const { remaining: none, ...rest } = result;
  assert.equal(none, null); // Infinity
  const anonymous = { method: 'call', client: 1, peer: '', pid: 7, uid: 1000, gid: 100, attempt: 1 };
  assert.deepEqual(rest, { ...anonymous, isCancelled: false });
});

test('cancel aborts the signal; the call is still answered', async (t) => {
  const worker = await serving(t);
  const gone = worker.body('wait');
  const late = worker.body('wait');
  worker.send(gone.text, late.text, { cancel: 999, why: 'gone' });
  worker.send({ cancel: gone.id, why: 'gone' }, { cancel: gone.id, why: 'timeout' });
  assert.deepEqual((await worker.answer(gone.id)).error, { code: 'crashed', message: 'AbortError' });
  worker.send({ cancel: late.id, why: 'timeout' });
  assert.deepEqual((await worker.answer(late.id)).error, { code: 'crashed', message: 'TimeoutError' });
  await worker.logged(/cancelled: AbortError true\ncancelled: TimeoutError true/);
  // Node's own functions throw an error of their own.
  for (const why of ['gone', 'timeout']) {
    const timer = worker.body('wait_by_timer');
    worker.send(timer.text, { cancel: timer.id, why });
    assert.deepEqual((await worker.answer(timer.id)).error, { code: 'crashed', message: 'AbortError' });
  }
  const undo = worker.body('wait_then_fail');
  worker.send(undo.text, { cancel: undo.id, why: 'gone' });
  await worker.logged(/the method wait_then_fail failed: Error: the undo failed/);
  // A method that stops because of the signal has no bug.
  assert.doesNotMatch(worker.stderr, /the method (wait|wait_by_timer) failed/);
  const look = worker.body('wait_then_look', '100');
  worker.send(look.text, { cancel: look.id, why: 'gone' });
  assert.deepEqual((await worker.answer(look.id)).result, { isAborted: true, name: 'AbortError' });
});

test('requests run concurrently and are answered in any order', async (t) => {
  const worker = await serving(t);
  const slow = worker.body('sleep', '300');
  const fast = worker.body('sleep', '1');
  worker.send(slow.text, fast.text);
  assert.equal((await worker.next((frame) => frame.id)).id, fast.id);
  assert.equal((await worker.next((frame) => frame.id)).id, slow.id);
});

test('answers of one turn of the loop are written together', async (t) => {
  const worker = await serving(t);
  for (const method of ['echo', 'echo_later']) {
    const bodies = Array.from({ length: 50 }, (_, i) => worker.body(i % 2 ? method : 'echo', String(i)));
    const before = worker.reads;
    worker.send(...bodies.map(({ text }) => text));
    for (const { id } of bodies) await worker.answer(id);
    assert.equal(worker.reads - before, 1);
  }
});

test('frames may arrive in pieces', async (t) => {
  const worker = await serving(t);
  const { id, text } = worker.body('echo', '"é"');
  const other = worker.body('echo', '2');
  const length = Buffer.alloc(8);
  length.writeUInt32LE(Buffer.byteLength(text));
  const bytes = Buffer.concat([length.subarray(0, 4), Buffer.from(text), length.subarray(4, 4)]);
  for (const byte of bytes) {
    worker.socket.write(Buffer.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
  worker.send(other.text);
  assert.equal((await worker.answer(id)).result, 'é');
  assert.equal((await worker.answer(other.id)).result, 2);
});

test('frames of 300 KB may have others after them', async (t) => {
  const worker = await serving(t);
  const bodies = [];
  for (let i = 0; i < 20; i++) {
    bodies.push(worker.body('echo', JSON.stringify('€'.repeat(100_000) + i)), worker.body('echo', String(i)));
  }
  worker.send(...bodies.map(({ text }) => text));
  for (let i = 0; i < 20; i++) {
    assert.equal((await worker.answer(bodies[2 * i].id)).result, '€'.repeat(100_000) + i);
    assert.equal((await worker.answer(bodies[2 * i + 1].id)).result, i);
  }
  await worker.end();
});

test('a probe is answered in the loop', async (t) => {
  const worker = await serving(t);
  worker.send({ probe: 17 });
  assert.deepEqual({ ...(await worker.next((frame) => frame.alive !== undefined)) }, { alive: 17 });
});

test('unknown frames and members are ignored', async (t) => {
  const worker = await serving(t);
  worker.send({ later: 1 }, {}, { probe: 1, more: [{ a: 1 }] });
  assert.equal((await worker.next((frame) => frame.alive !== undefined)).alive, 1);
});

test('a frame that is not JSON ends the app', async (t) => {
  const worker = await serving(t);
  worker.send('{"id":');
  assert.deepEqual(await within(worker.exit, 'exit'), [76, null]);
});

test('closed frames call the functions of onClose', async (t) => {
  const worker = await serving(t);
  worker.send({ closed: 4711 });
  await worker.logged(/client 4711 has left/);
  await worker.logged(/<3>a function of onClose failed: Error: closing failed/);
  assert.equal((await worker.call('echo', '1')).result, 1);
});

test('metrics are sent with the answers of their turn', async (t) => {
  const worker = await serving(t);
  assert.deepEqual((await worker.next((frame) => frame.metrics)).metrics, { orders: 2 });
  const [one, two] = [worker.body('count', '1'), worker.body('count', '3')];
  const before = worker.reads;
  worker.send(one.text, two.text);
  assert.deepEqual((await worker.next((frame) => frame.metrics)).metrics, { orders: 4, seconds: [0.25, 0.25] });
  await worker.answer(one.id);
  await worker.answer(two.id);
  assert.equal(worker.reads - before, 1);
  for (const wrong of ['-1', '0.5', '"5"', '[5]', 'true', 'null', '9007199254740994', '1e308']) {
    assert.deepEqual((await worker.call('count', wrong)).error, { code: 'crashed', message: 'RangeError' }, wrong);
  }
  await worker.call('count', '9007199254740992');
  assert.equal((await worker.next((frame) => frame.metrics)).metrics.orders, 2 ** 53);
  // The daemon counts no larger number of one frame.
  worker.send(worker.body('count', '9007199254740992').text, worker.body('count', '9007199254740992').text);
  assert.equal((await worker.next((frame) => frame.metrics)).metrics.orders, 2 ** 53);
});

test('many observations are split into several frames', async (t) => {
  const worker = await serving(t, 'all', { env: { FDPASSD_MAX_FRAME: '20000' } });
  await worker.next((frame) => frame.metrics);
  await worker.call('observe_many', '10000');
  let sum = 0;
  for (let count = 0; count < 10000; ) {
    const { seconds } = (await worker.next((frame) => frame.metrics)).metrics;
    count += seconds.length;
    sum += seconds.reduce((a, b) => a + b);
  }
  assert.equal(sum, (9999 * 10000) / 2);
});

test('metrics longer than a frame are split, not lost', async (t) => {
  const worker = await serving(t, 'all', { env: { FDPASSD_MAX_FRAME: '2500' } });
  await worker.next((frame) => frame.metrics);
  await worker.call('observe_sevenths', '1000');
  const values = [];
  while (values.length < 1000) {
    const { text, metrics } = await worker.next((frame) => frame.metrics);
    assert.ok(text.length <= 2500, text.length);
    values.push(...metrics.seconds);
  }
  assert.deepEqual(values, Array.from({ length: 1000 }, (_, i) => i / 7));
});

test('health is reported when it changes', async (t) => {
  const worker = await serving(t);
  const next = async () => (await worker.next((frame) => frame.health !== undefined)).health;
  await worker.call('health', 'null'); // healthy already
  await worker.call('health', '"no database"');
  await worker.call('health', '"no database"');
  await worker.call('health', 'null');
  assert.deepEqual([await next(), await next()], ['no database', null]);
  assert.ok(!worker.frames.some((text) => text.includes('health')));
});

test('functions of health are called again and again', async (t) => {
  const worker = await serving(t, 'health');
  const next = async () => (await worker.next((frame) => frame.health !== undefined)).health;
  const reasons = [await next(), await next(), await next(), await next(), await next()];
  assert.deepEqual(reasons, ['warming up', null, 'no database', 'RangeError: slow', null]);
  // A time that no timer has is a long one. The other function has been called five times by now.
  assert.equal(worker.stderr.match(/rarely/g).length, 1, worker.stderr);
});

test('an app that cannot start reports why, and exits with 1', async (t) => {
  const worker = new Worker(t, 'fails');
  assert.deepEqual({ ...(await worker.next()) }, { failed: 'TypeError: no database ' });
  assert.deepEqual(await within(worker.exit, 'exit'), [1, null]);
  await worker.logged(/<3>the app cannot start: TypeError: no database/);
  assert.doesNotMatch(worker.stderr, /not reached/);
  assert.equal(worker.frames.length, 0);
});

test('a reason that is longer than a frame as JSON is in the log only', async (t) => {
  const env = { LENGTH: '800', CHARACTER: '\x01', FDPASSD_MAX_FRAME: '4000' };
  const worker = new Worker(t, 'fails', { env });
  assert.deepEqual({ ...(await worker.next()) }, { failed: 'the app cannot start; its log has the reason' });
  assert.deepEqual(await within(worker.exit, 'exit'), [1, null]);
});

test('an app that is to be forked is refused', async (t) => {
  const worker = new Worker(t, 'bare', { env: { FDPASSD_PRELOAD: '1' } });
  assert.deepEqual({ ...(await worker.next()) }, { failed: 'Node.js cannot fork its runtime: remove app.preload' });
  assert.deepEqual(await worker.exit, [1, null]);
});

test('a hello longer than a frame is a failed start', async (t) => {
  const worker = new Worker(t, 'many', { env: { FDPASSD_MAX_FRAME: '1000' } });
  assert.match((await worker.next()).failed, /longer than a frame/);
  assert.deepEqual(await within(worker.exit, 'exit'), [1, null]);
});

test('stop waits for answers, calls its functions, exits with 0', async (t) => {
  const worker = await serving(t);
  const { id, text } = worker.body('sleep', '200');
  worker.send(text, { stop: 30000 });
  assert.equal((await worker.answer(id)).result, 200);
  assert.deepEqual(await within(worker.exit, 'exit'), [0, null]);
  assert.match(worker.stderr, /stopped/);
});

test('an idle app exits at once after stop', async (t) => {
  const worker = await serving(t, 'bare');
  worker.send({ stop: 30000 });
  assert.deepEqual(await within(worker.exit, 'exit', 5000), [0, null]);
});

test('the end of the descriptor ends the app, also amid a request', async (t) => {
  const worker = await serving(t);
  worker.send(worker.body('sleep', '60000').text);
  await worker.call('echo', '1');
  await worker.end();
  assert.match(worker.stderr, /stopped/);
});

test('run by hand, an app explains how to start it', async (t) => {
  const worker = new Worker(t, 'bare', { env: { FDPASSD_APP: undefined }, args: ['--no-warnings'] });
  assert.deepEqual(await within(worker.exit, 'exit'), [64, null]);
  await worker.logged(/\n/);
  assert.match(worker.stderr, /^start this app with: fdpassd app -- node --no-warnings \S*test\/apps\/bare\.js\n$/);
});

test('a descriptor that is not open is reported', async (t) => {
  const worker = new Worker(t, 'bare', { stdio: ['ignore', 'pipe', 'pipe'] });
  assert.deepEqual(await within(worker.exit, 'exit'), [64, null]);
  await worker.logged(/descriptor 3/);
});

// How Node.js handles signals, descriptors, pipes and exits.

test('SIGTERM, SIGINT and SIGHUP do not end the app', async (t) => {
  const worker = await serving(t);
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGTERM']) worker.child.kill(signal);
  assert.equal((await worker.call('sleep', '50')).result, 50);
  // Programs that the app starts get the usual signals.
  const pid = (await worker.call('spawn')).result;
  t.after(() => process.kill(pid, 'SIGKILL'));
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  assert.equal((await worker.call('terminate')).result, 'SIGTERM');
  assert.equal(Number(`0x${/SigIgn:\s*(\w+)/.exec(status)[1]}`) & 0x4003, 0, status);
  await worker.end();
});

test('a program that the app starts does not get descriptor 3', async (t) => {
  const worker = await serving(t);
  const pid = (await worker.call('spawn')).result;
  t.after(() => process.kill(pid, 'SIGKILL'));
  assert.ok(existsSync(`/proc/${pid}/fd/2`));
  // The program may have opened a file with this number.
  assert.ok(!openFile(pid, 3).startsWith('socket:'));
  assert.deepEqual((await worker.call('environment')).result, []);
  // So its end is the end of the connection, although the program continues.
  const closed = once(worker.socket, 'close');
  worker.child.kill('SIGKILL');
  await within(closed, 'end of the connection');
});

test('an exit writes the answers that were given', async (t) => {
  const worker = await serving(t, 'all', { env: { FDPASSD_MAX_FRAME: '100000000' } });
  const { id, text } = worker.body('long_then_exit', '10000000');
  worker.socket.pause();
  worker.send(text);
  // Nothing is read until the socket is full and the app waits in its exit.
  await new Promise((resolve) => setTimeout(resolve, 300));
  worker.socket.resume();
  assert.equal((await worker.answer(id)).result.length, 10_000_000);
  assert.deepEqual(await within(worker.exit, 'exit'), [7, null]);
});

test('an exit in the turn of the answer writes it', async (t) => {
  const worker = await serving(t);
  assert.equal((await worker.call('exit_in_turn', '3')).result, 'last');
  assert.deepEqual(await within(worker.exit, 'exit'), [3, null]);
});

test('an exception outside of methods ends the app after its answers', async (t) => {
  const worker = await serving(t);
  assert.equal((await worker.call('throw_outside')).result, 'before');
  assert.deepEqual(await within(worker.exit, 'exit'), [1, null]);
});

test('a long reason of a failed start is cut and arrives', async (t) => {
  const worker = new Worker(t, 'fails', { env: { LENGTH: '1000000' } });
  assert.match((await worker.next()).failed, /^TypeError: no database x{900,}…$/);
  assert.deepEqual(await within(worker.exit, 'exit'), [1, null]);
});

test('an answer arrives although the worker has ended its side', async (t) => {
  const worker = await serving(t, 'all', { env: { FDPASSD_MAX_FRAME: '100000000' } });
  const { id, text } = worker.body('long', '10000000');
  worker.socket.pause();
  worker.send(text);
  worker.socket.end();
  await new Promise((resolve) => setTimeout(resolve, 300));
  worker.socket.resume();
  assert.equal((await worker.answer(id)).result.length, 10_000_000);
  assert.deepEqual(await within(worker.exit, 'exit'), [0, null]);
});

test('an exit does not wait for ever for a worker that does not read', async (t) => {
  const worker = await serving(t, 'all', { env: { FDPASSD_MAX_FRAME: '100000000' } });
  worker.socket.pause();
  worker.send(worker.body('long_then_exit', '10000000').text);
  assert.deepEqual(await within(worker.exit, 'exit'), [7, null]);
});

test('more answers than the socket takes arrive in order', async (t) => {
  const worker = await serving(t);
  worker.socket.pause();
  const bodies = Array.from({ length: 60 }, (_, i) => worker.body('sleep', `${i}`));
  const large = Array.from({ length: 40 }, () => worker.body('long', '300000'));
  worker.send(...bodies.map(({ text }) => text), ...large.map(({ text }) => text));
  await new Promise((resolve) => setTimeout(resolve, 200));
  worker.socket.resume();
  for (const { id } of bodies) await worker.answer(id);
  for (const { id } of large) assert.equal((await worker.answer(id)).result.length, 300_000);
  await worker.end();
});

test('a description that is non-blocking already is served', async (t) => {
  const server = createServer().listen('\0fdpassd-node-test-' + process.pid);
  await once(server, 'listening');
  t.after(() => server.close());
  const socket = connect(server.address());
  const [other] = await once(server, 'connection');
  const worker = new Worker(t, 'all', { stdio: ['ignore', 'pipe', 'pipe', other] });
  other.destroy();
  worker.watch(socket);
  await worker.hello();
  assert.equal((await worker.call('echo', '5')).result, 5);
  await worker.end();
});

test('a log that is not read does not block the app', async (t) => {
  const worker = await serving(t);
  worker.child.stdout.pause();
  await worker.call('print', '5000');
  assert.equal((await worker.call('echo', '1')).result, 1);
  worker.child.stdout.resume();
});

test('a log whose reader is gone does not end the app', async (t) => {
  const worker = await serving(t);
  worker.child.stdout.destroy();
  worker.child.stderr.destroy();
  for (let i = 0; i < 5; i++) await worker.call('print', '10');
  assert.deepEqual((await worker.call('crash')).error, { code: 'crashed', message: 'RangeError' });
  assert.equal((await worker.call('echo', '1')).result, 1);
  await worker.end();
});

test('the examples serve', async (t) => {
  const shop = await serving(t, here('../examples/shop.js'));
  assert.equal((await shop.call('price', '{"item":"tea","count":2}')).result, 9);
  assert.equal((await shop.call('price', '{"item":"gold"}')).error.code, 'no_such_item');
  assert.equal((await shop.call('price', '{"item":"tea","count":0}')).error.code, 'bad_params');
  assert.equal((await shop.call('price')).error.code, 'bad_params');
  assert.deepEqual((await shop.call('order', '{"item":"milk"}')).result, { item: 'milk', price: 1.2 });
  assert.deepEqual((await shop.next((frame) => frame.metrics)).metrics, { orders: 1 });
  await shop.end();
});

test('the conformance app serves', async (t) => {
  const app = await serving(t, here('../conformance/app.js'));
  assert.match((await app.call('check_echo', '[18446744073709551617]')).text, /"result":\[18446744073709551617\]}/);
  assert.equal((await app.call('check_sleep', '5')).result, 5);
  assert.deepEqual((await app.call('check_fault')).error, { code: 'check_failed', message: 'a fault on purpose' });
  assert.deepEqual((await app.call('check_crash')).error, { code: 'crashed', message: 'RangeError' });
  const fault = { code: 'no_such_item', message: 'no "tea"' };
  assert.deepEqual((await app.call('check_fault', JSON.stringify(fault))).error, fault);
  assert.equal((await app.call('check_null')).result, null);
  assert.equal((await app.call('check_print', '"a line"')).result, null);
  assert.equal((await app.call('check_spawn')).result.open, false);
  await app.logged(/<4>a line on standard error/);
  await app.logged(/^a line\n$/, 'stdout');
  await app.end();
});
