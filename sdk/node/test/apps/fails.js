import { App } from 'fdpassd';

const app = new App();
app.start(() => app.unhealthy('not sent'));
app.start(async () => {
  throw new TypeError(`no database ${'x'.repeat(Number(process.env.LENGTH ?? 0))}${process.env.HALF ? '\ud83d' : ''}`);
});
app.start(() => console.error('not reached'));
app.run();
