// The app of the tests, with the package for Node.js.

import { spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { App } from 'fdpassd';

const app = new App({ concurrency: 64 });

app.method('echo', { idempotent: true }, async (params) => {
  await sleep(2);
  return params;
});

app.method('order', async ({ number, ms }) => {
  appendFileSync(process.env.ORDERS, `${number}\n`);
  await sleep(ms);
  return number;
});

// A process in a session of its own, which has no open descriptors of the app.
spawn('tail', ['-f', '/dev/null'], { detached: true, stdio: 'ignore' }).unref();

app.run();
