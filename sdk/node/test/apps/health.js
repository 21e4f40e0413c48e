import { App } from 'fdpassd';

const app = new App({ concurrency: 1 });
const results = [() => undefined, () => 'no database', () => Promise.reject(new RangeError('slow')), async () => null];
app.health(() => results.shift()?.(), { every: 20 });
app.health(() => console.error('rarely'), { every: 2 ** 31 });
app.start(() => app.unhealthy('warming up'));
app.run();
