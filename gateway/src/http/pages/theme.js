// Light or dark: as the system has it, until the button says otherwise; remembered.

export function followTheme() {
  const root = document.documentElement;
  const remembered = localStorage.getItem('postern-theme');
  if (remembered) root.dataset.theme = remembered;
  document.getElementById('theme').addEventListener('click', () => {
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
    localStorage.setItem('postern-theme', root.dataset.theme);
  });
}
