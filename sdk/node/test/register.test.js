// Mistakes of the program, which are found before it serves.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { App, Fault, Raw } from 'fdpassd';

test('invalid and duplicate names are refused', () => {
  const app = new App();
  for (const name of ['', 'Ping', '9a', 'error', 'a b', 'é', 'x'.repeat(65), undefined, 7]) {
    assert.throws(() => app.method(name, () => 1), /is not a valid method name/, String(name));
    assert.throws(() => app.method('good', { reply: name ?? null }, () => 1), /is not a valid reply name/);
  }
  for (const name of ['ping', 'methods']) assert.throws(() => app.method(name, () => 1), /the daemon has its own/);
  app.method('a.b-c_9', () => 1).method('a', {}, () => 1);
  assert.throws(() => app.method('a', () => 1), /duplicate method "a"/);
  assert.throws(() => app.method('b'), TypeError);
  assert.throws(() => app.method('b', {}), TypeError);
  assert.throws(() => app.start(1), TypeError);
});

test('a concurrency out of range is refused', () => {
  for (const concurrency of [0, -1, 1.5, 4097, NaN, '8']) assert.throws(() => new App({ concurrency }), RangeError);
  new App({ concurrency: 4096 });
});

test('invalid and duplicate metrics are refused', () => {
  const app = new App();
  for (const name of ['', 'Orders', 'a-b', 'a b', undefined]) {
    assert.throws(() => app.counter(name, 'Help.'), /is not a valid name of a metric/);
  }
  app.counter('orders');
  assert.throws(() => app.histogram('orders'), /duplicate metric "orders"/);
  for (const buckets of [[1, 1], [2, 1], [NaN], [1, Infinity]]) {
    assert.throws(() => app.histogram('seconds', 'Help.', buckets), TypeError);
  }
  const seconds = app.histogram('seconds');
  for (const value of [NaN, Infinity, '1']) assert.throws(() => seconds.observe(value), RangeError);
  assert.throws(() => app.health(() => null, { every: 0 }), RangeError);
  assert.throws(() => app.health(() => null, { every: '5' }), RangeError);
});

test('codes of the daemon are refused', () => {
  for (const code of ['timeout', 'unknown_method', 'Upper', '', undefined, 7]) {
    assert.throws(() => new Fault(code, 'message'), RangeError);
  }
  const fault = new Fault('no_such_item', 'no tea');
  assert.ok(fault instanceof Error);
  assert.equal(String(fault), 'Fault: no tea');
  assert.equal(fault.code, 'no_such_item');
  assert.equal(String(new Raw('[1]')), '[1]');
});
