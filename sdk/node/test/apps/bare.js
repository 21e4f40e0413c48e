import { App } from 'fdpassd';

const app = new App();
app.method('add', ({ a, b }) => a + b);
app.run();
