// Compiled by package.test.js; never run.

import { App, Fault, Raw, type Call, type Counter } from 'fdpassd';

interface Order {
  item: string;
  count?: number;
}

const app = new App({ concurrency: 8, name: 'shop', version: '1' });
const orders: Counter = app.counter('orders', 'Orders.');

app
  .start(async () => {})
  .stop(() => {})
  .onClose((client: number) => client)
  .health(async () => 'no database', { every: 1000 })
  .method('price', { idempotent: true, reply: 'price_r' }, async ({ item, count = 1 }: Order, call: Call) => {
    if (count < 1) throw new Fault('bad_params', 'count is at least 1');
    const signal: AbortSignal = call.signal;
    const deadline: number | undefined = call.deadline;
    orders.add();
    return { item, signal: signal.aborted, deadline };
  })
  .method<Order, number>('count', (order) => order.count ?? 1)
  .method('raw', (_, call) => new Raw(call.rawParams ?? 'null'))
  .method('any', (params) => params.a.b);

app.histogram('seconds', 'Seconds.', [0.1, 1]).observe(0.2);
app.unhealthy('no database');
app.healthy();
app.run();

// @ts-expect-error: a method is a function
app.method('none', {});
// @ts-expect-error: a misspelt option
app.method('misspelt', { idempotant: true }, () => 1);
// @ts-expect-error: another result
app.method<Order, number>('string', () => 'x');
// @ts-expect-error: read-only
app.method('readonly', (_, call) => (call.client = 1));
// @ts-expect-error: no code
new Fault();
