"""Run the tests on every Python that is here, and write the table of what passed."""
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / 'docs' / 'results' / 'versions.md'
REPORTS = ROOT / 'build' / 'versions'
PYTHONS = ['3.10', '3.11', '3.12', '3.13']
PLANS = [('oldest', 'python3.10', 'CONSTRAINTS=constraints-oldest.txt'),
         *((version, f'python{version}') for version in PYTHONS)]
SHOWN = ['torch', 'transformers', 'pyterrier', 'pyterrier-dr', 'numpy', 'pandas', 'scikit-learn']


def environment() -> dict[str, str]:
    """This environment, with every Python that pyenv has (if there is pyenv) callable by its short name."""
    try:
        listed = subprocess.run(['pyenv', 'versions', '--bare'], capture_output=True, text=True).stdout.split()
    except FileNotFoundError:
        listed = []
    return {**os.environ, **({'PYENV_VERSION': ':'.join(listed)} if listed else {})}


def run(name: str, python: str, *variables: str) -> None:
    """Make an environment and run the tests in it, if this Python is here."""
    env = environment()
    try:
        if subprocess.run([python, '--version'], env=env, capture_output=True).returncode:
            return
    except FileNotFoundError:
        return
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f'{name}.xml').unlink(missing_ok=True)
    subprocess.run(['make', 'test', f'PYTHON={python}', f'VENV=.venv-{name}',
                    f'ARGS=--junitxml={REPORTS / name}.xml', *variables], cwd=ROOT, env=env)


def row(name: str) -> list[str] | None:
    """A row of the table; None where there is no environment of this name."""
    python = ROOT / f'.venv-{name}' / 'bin' / 'python'
    if not python.exists():
        return None
    shown = subprocess.run([python, '-c', 'import sys; from importlib.metadata import version; '
                            'print(sys.version.split()[0], *map(version, sys.argv[1:]))', *SHOWN],
                           capture_output=True, text=True).stdout.split()
    return [name, *(shown or ['?'] * (1 + len(SHOWN))), *counts(REPORTS / f'{name}.xml')]


def counts(report: Path) -> list[str]:
    """Passed, skipped and failed tests of a JUnit report."""
    if not report.exists():
        return ['0', '0', 'did not run']
    suites = list(ElementTree.parse(report).iter('testsuite'))
    total, skipped, failed, errors = (sum(int(suite.get(key)) for suite in suites)
                                      for key in ('tests', 'skipped', 'failures', 'errors'))
    return [str(total - skipped - failed - errors), str(skipped), str(failed + errors)]


def main() -> int:
    """Run those that are named, or all, and write the table with the last reports of all; 1 if anything failed."""
    for name, *plan in PLANS:
        if name in sys.argv[1:] or not sys.argv[1:]:
            run(name, *plan)
    rows = {name: row(name) for name, *_ in PLANS}
    header = ['run', 'Python', *SHOWN, 'passed', 'skipped', 'failed']
    lines = [header, ['---'] * len(header), *(found for found in rows.values() if found)]
    absent = [name for name, found in rows.items() if found is None]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text('\n'.join([
        '# Versions', '', f'`make test-versions`, {date.today()}: `oldest` has the lower bounds that the package '
        'declares (constraints-oldest.txt), the others constraints.txt.', '',
        *('| ' + ' | '.join(line) + ' |' for line in lines),
        *(['', f'Not run: {", ".join(absent)}.'] if absent else [])]) + '\n')
    return int(any(found and found[-1] != '0' for found in rows.values()))


if __name__ == '__main__':
    sys.exit(main())
