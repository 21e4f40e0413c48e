import { App } from 'fdpassd';

const app = new App();
app.start(() => app.unhealthy('not sent'));
app.start(async () => {
  const length = Number(process.env.LENGTH ?? 0);
  throw new TypeError(`no database ${(process.env.CHARACTER ?? 'x').repeat(length)}${process.env.HALF ? '\ud83d' : ''}`);
});
app.start(() => console.error('not reached'));
app.run();
