// A shop: prices that take a while to look up, and orders.
//
//   fdpassd app -- node examples/shop.js

import { setTimeout as sleep } from 'node:timers/promises';

import { App, Fault } from 'fdpassd';

const app = new App({ name: 'shop', version: '1.0' });
const orders = app.counter('orders', 'Orders that were accepted.');
const prices = new Map();

// Runs before the first request.
app.start(() => {
  prices.set('tea', 4.5).set('milk', 1.2);
});

// A stand-in for a database. The signal ends the wait when the client has left.
async function priceOf(item, signal) {
  await sleep(5, undefined, { signal });
  if (!prices.has(item)) throw new Fault('no_such_item', `there is no ${item}`);
  return prices.get(item);
}

app.method('price', { idempotent: true }, async (params, call) => {
  const { item, count = 1 } = params ?? {};
  if (typeof item !== 'string') throw new Fault('bad_params', 'item must be a string');
  if (!Number.isInteger(count) || count < 1) throw new Fault('bad_params', 'count must be an integer of at least 1');
  return (await priceOf(item, call.signal)) * count;
});

// Not idempotent: if the process dies in it, the client gets `crashed` and decides whether to order again.
app.method('order', async (params, call) => {
  const { item } = params ?? {};
  const price = await priceOf(item, call.signal);
  orders.add();
  console.log(`client ${call.client} orders ${item}`);
  return { item, price };
});

app.run();
