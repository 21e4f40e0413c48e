// The methods of this app. `fdpassctl reload` applies a change; clients stay connected.

import { App, Fault } from 'fdpassd';

const app = new App();
const greeting = process.env.GREETING ?? 'Hello';

// Idempotent: if the process dies in it, the request runs once more. A method that waits is an async function.
app.method('hello', { idempotent: true }, (params) => {
  const name = params?.name;
  if (typeof name !== 'string' || name === '') throw new Fault('bad_params', 'name must be a string that is not empty');
  return `${greeting}, ${name}!`;
});

app.run();
