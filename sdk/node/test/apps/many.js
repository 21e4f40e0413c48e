import { App } from 'fdpassd';

const app = new App();
for (let i = 0; i < 100; i++) app.method(`method_${i}`, () => i);
app.run();
