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
SHOWN = ['torch', 'transformers', 'pyterrier', 'pyterrier-dr', 'numpy', 'pandas', 'scikit-learn']


def environment() -> dict[str, str]:
    """This environment, with every Python that pyenv has (if there is pyenv) callable by its short name."""
    try:
        listed = subprocess.run(['pyenv', 'versions', '--bare'], capture_output=True, text=True).stdout.split()
    except FileNotFoundError:
        listed = []
    return {**os.environ, **({'PYENV_VERSION': ':'.join(listed)} if listed else {})}


def run(name: str, python: str, *variables: str) -> list[str] | None:
    """Make an environment and run the tests in it; one row of the table, or None where this Python is missing."""
    env = environment()
    try:
        if subprocess.run([python, '--version'], env=env, capture_output=True).returncode:
            return None
    except FileNotFoundError:
        return None
    venv, report = f'.venv-{name}', REPORTS / f'{name}.xml'
    report.unlink(missing_ok=True)
    subprocess.run(['make', 'test', f'PYTHON={python}', f'VENV={venv}', f'ARGS=--junitxml={report}', *variables],
                   cwd=ROOT, env=env)
    shown = subprocess.run([ROOT / venv / 'bin' / 'python', '-c', 'import sys; from importlib.metadata import version; '
                            'print(sys.version.split()[0], *map(version, sys.argv[1:]))', *SHOWN],
                           capture_output=True, text=True).stdout.split()
    return [name, *(shown or ['?'] * (1 + len(SHOWN))), *counts(report)]


def counts(report: Path) -> list[str]:
    """Passed, skipped and failed tests of a JUnit report."""
    if not report.exists():
        return ['0', '0', 'did not run']
    suites = list(ElementTree.parse(report).iter('testsuite'))
    total, skipped, failed, errors = (sum(int(suite.get(key)) for suite in suites)
                                      for key in ('tests', 'skipped', 'failures', 'errors'))
    return [str(total - skipped - failed - errors), str(skipped), str(failed + errors)]


def main() -> int:
    """Run all, write the table; 1 if anything failed."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    plans = [('oldest', 'python3.10', 'CONSTRAINTS=constraints-oldest.txt'),
             *((version, f'python{version}') for version in PYTHONS)]
    rows = {plan[0]: run(*plan) for plan in plans}
    header = ['run', 'Python', *SHOWN, 'passed', 'skipped', 'failed']
    lines = [header, ['---'] * len(header), *(row for row in rows.values() if row)]
    absent = [name for name, row in rows.items() if row is None]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text('\n'.join([
        '# Versions', '', f'`make test-versions`, {date.today()}: `oldest` has the lower bounds that the package '
        'declares (constraints-oldest.txt), the others constraints.txt.', '',
        *('| ' + ' | '.join(line) + ' |' for line in lines),
        *(['', f'Not run, for want of the interpreter: {", ".join(absent)}.'] if absent else [])]) + '\n')
    return int(any(row and row[-1] != '0' for row in rows.values()))


if __name__ == '__main__':
    sys.exit(main())
