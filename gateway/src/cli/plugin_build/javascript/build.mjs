// Run by `postern plugin build` in the plugin's directory: componentize.
// Arguments: the module, the WIT directory, the world, the file to write.
import { writeFile } from 'node:fs/promises';

const [sourcePath, witPath, worldName, out] = process.argv.slice(2);
const { componentize } = await import('@bytecodealliance/componentize-js');
try {
  // Without any of these features nothing of WASI is imported.
  const disableFeatures = ['stdio', 'random', 'clocks', 'http', 'fetch-event'];
  const { component } = await componentize({ sourcePath, witPath, worldName, disableFeatures });
  await writeFile(out, component);
} catch (error) {
  // What the tool says about itself helps nobody who writes a plugin.
  const noise = /^(Failed to initialize component|Exception while evaluating top-level script|Additionally, some promises|Promise rejected but never handled|Stack:|\.+\^$)/;
  const lines = `${error.message ?? error}`.split('\n').filter((line) => line.trim() !== '' && !noise.test(line.trim()));
  console.error(lines.join('\n'));
  process.exitCode = 1;
}
