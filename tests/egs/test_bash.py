"""The shell scripts run in bash 3.2 with BSD's tools, as on macOS; and what ShellCheck says."""
import re
import shutil
import subprocess

import pytest

# What bash 3.2 lacks, or does otherwise: a regular expression, and a line that it must find.
LACKING = {
    'mapfile': (r'\b(mapfile|readarray)\b', 'mapfile -t lines < file'),
    'associative arrays, references, global variables, variables with a case': (
        r'\b(declare|local|typeset)\s+-[a-zA-Z]*[Anglu]', 'local -A seen'),
    'local -': (r'\blocal\s+-\s*($|;)', 'local -'),
    'case of a value': (r'\$\{!?\w+(\[[^]]*\])?(\^|,)', 'echo "${name^^}"'),
    'transformations of a value': (r'\$\{!?\w+(\[[^]]*\])?@[A-Za-z]\}', 'echo "${name@Q}"'),
    'negative indices and lengths': (r'\$\{\w+(\[\s*-|:\s*\w*:\s*-)', 'echo "${names[-1]}"'),
    '|&': (r'\|&', 'make |& tee log'),
    '&>>': (r'&>>', 'make &>> log'),
    'numbered descriptors': (r'\{\w+\}[<>]', 'exec {fd}< file'),
    'coprocesses': (r'\bcoproc\b', 'coproc cat'),
    'wait for any': (r'\bwait\s+-', 'wait -n'),
    'tests of variables': (r'(\[|test)\s+(!\s+)?-[vR]\s', '[[ -v name ]]'),
    'printf of times': (r'%[-0-9]*\([^)]*\)T', "printf '%(%F)T'"),
    'printf into an array': (r'\bprintf\s+-v\s+\S*\[', 'printf -v names[0] %s x'),
    'variables': (r'\$\{?(EPOCH(SECONDS|REALTIME)|BASHPID|SRANDOM)\b', 'echo $EPOCHSECONDS'),
    'cases that continue': (r';;?&(\s|$)', 'a) echo ;&'),
    'read of characters, with a text': (r'\bread\s[^|;]*-\w*[Ni]\b', 'read -N 1 key'),
    'parts of a second': (r'\bread\s[^|;]*-t\s*\d*\.\d', 'read -t 0.1 key'),
    'steps and padding of sequences': (r'\{\w+\.\.\w+\.\.|\{0\d+\.\.', 'echo {1..9..2}'),
    'options': (r'\bshopt\b.*\b(globstar|lastpipe|inherit_errexit)\b', 'shopt -s lastpipe'),
    'code points': (r"\$'[^']*\\[uU]", r"echo $'\u00e4'"),
    'case in a substitution': (r'\$\([^)]*\bcase\b', 'x=$(case $1 in a) echo 1 ;; esac)'),
}
# What the tools of BSD and macOS lack, or do otherwise.
OF_GNU = {
    'tools': (r'(^|[|;&(]\s*|\bexec\s+)(tac|nproc|timeout|flock|setsid|md5sum|sha\d+sum|numfmt|shuf'
              r'|realpath|getent)\s', 'cores=$(nproc --all)'),
    'long options': (r'\b(sed|grep|cp|mv|ln|rm|ls|df|du|wc|cut|sort|head|tail|touch|mkdir|chmod'
                     r'|stat|date|mktemp|readlink|xargs|tr|tee|basename|dirname|find)'
                     r'\s([^|;&"\']*\s)?--[a-z]', 'ls -l --sort=time'),
    'sed in place': (r'\bsed\s([^|;]*\s)?-[a-zA-Z]*i', "sed -i 's/a/b/' file"),
    'options of sed': (r'\bsed\s([^|;]*\s)?-[a-zA-Z]*[zsu]\b', "sed -z 's/a/b/' file"),
    'extended operators in basic expressions': (
        r'\b(sed|grep)\s(?![^|;]*-[a-zA-Z]*[EF])[^|;]*[^\\]\\[|+?]', r"grep 'a\|b' file"),
    'classes in expressions': (r'\b(sed|grep)\s.*\\[wWsSbB<>]', r"sed 's/\s//' file"),
    'options of grep': (r'\bgrep\s([^|;]*\s)?-[a-zA-Z]*[Pz]', "grep -oP 'a' file"),
    'readlink of a whole path': (r'\breadlink\s+-[a-z]*[fem]', 'readlink -f file'),
    'options of date': (r'\bdate\b[^|;]*(\s-d\b|%N)', 'date -d yesterday'),
    'stat of a format': (r'\bstat\s+-c', 'stat -c %s file'),
    'options of xargs': (r'\bxargs\s([^|;]*\s)?-[a-zA-Z]*[rd]\b', 'ls | xargs -r rm'),
    'sorting of versions': (r'\bsort\s([^|;]*\s)?-[a-zA-Z]*[VRz]', 'sort -V file'),
    'all but the last lines': (r'\b(head|tail)\s+-[nc]\s*-', 'head -n -1 file'),
    'functions of awk': (r'\b(gensub|strftime|systime|asorti?|PROCINFO)\b', 'awk "{ gensub(a) }"'),
    'options of mktemp': (r'\bmktemp\s+-p', 'mktemp -p /tmp'),
    'options of cp, mv, ln': (r'\b(cp|mv|ln)\s([^|;]*\s)?-[a-zA-Z]*[tT]\b', 'cp -t folder file'),
    'printing of find': (r'\bfind\s[^|;]*-printf\b', "find . -printf '%s'"),
}
RULES = {**LACKING, **OF_GNU}


def without_comment(line):
    """A line of a script without its comment; a # within a word or a string begins none."""
    return re.sub(r'(^|\s)#(?=[\s!A-Z]|$)[^"\']*$', '', line)


def breaks(rule, text):
    """The numbers of the lines of a script that break a rule."""
    return [number for number, line in enumerate(text.splitlines(), start=1)
            if re.search(RULES[rule][0], without_comment(line))]


def empty_arrays(text, sourced=''):
    """The numbers of the lines that expand an array which may be empty.

    bash 3.2 refuses that under `set -u`. An array is not empty if it has words in it from the
    beginning, or if its number was looked at. sourced: a script that this one reads first.
    """
    def is_filled(name):
        empty = re.search(rf'\b{name}=\(\)|\bread\s[^|;]*-\w*a\s+{name}\b', sourced + text)
        filled = re.search(rf'\b{name}=\(', sourced + text)
        return f'${{#{name}[@]}}' in text or filled and not empty

    expansion = re.compile(r'(?<!\+)"\$\{(\w+)\[[@*]\]')
    return [number for number, line in enumerate(text.splitlines(), start=1)
            for match in expansion.finditer(without_comment(line)) if not is_filled(match[1])]


@pytest.fixture(scope='module')
def scripts(root):
    """Every shell script: path from the root -> text."""
    paths = [*root.glob('egs/**/*.sh'), *root.glob('tests/**/*.sh'), *(root / '.ci').iterdir()]
    return {str(path.relative_to(root)): path.read_text(encoding='utf-8') for path in sorted(paths)}


def test_the_scripts_are_found(scripts):
    expected = {'.ci/run', 'egs/common.sh', 'egs/esc50/run_esc50.sh', 'tests/run_tests.sh'}
    assert expected <= set(scripts)


@pytest.mark.parametrize('rule', RULES)
def test_no_script_uses_what_bash_3_2_or_bsd_tools_lack(rule, scripts):
    assert breaks(rule, RULES[rule][1]), 'the rule finds not even its own example'
    found = {name: breaks(rule, text) for name, text in scripts.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_script_expands_an_array_that_may_be_empty(scripts):
    risky = 'a=()\nf "${a[@]}"\nread -r -a b\nb=(1)\nf "${b[@]}" "${c[*]}"'
    safe = 'a=(1)\nb=()\n[ "${#b[@]}" -gt 0 ]\nf "${a[@]}" "${b[@]}" ${c[@]+"${c[@]}"} "$@"'
    assert empty_arrays(risky) == [2, 5, 5] and empty_arrays(safe) == []
    common = scripts['egs/common.sh']
    found = {name: empty_arrays(text, common) for name, text in scripts.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_shellcheck_finds_nothing(scripts, root):
    if not shutil.which('shellcheck'):
        pytest.skip('there is no shellcheck: apt-get install shellcheck')
    done = subprocess.run(['shellcheck', '--severity=style', '--format=gcc', *scripts], cwd=root,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_folds_that_are_none_are_refused(root, run_shell, tmp_path):
    done = run_shell([root / 'egs' / 'esc50' / 'run_esc50.sh', '--folds', ' '])
    assert done.returncode == 2 and '--folds: expected some text' in done.stderr
    (tmp_path / 'run_options.txt').write_text('--loss=CE\n--metrics=acc\n--audio_length=32\n')
    done = run_shell([root / 'egs' / 'own_dataset' / 'run_own.sh', '--data', 'sounds',
                      '--prep_dir', tmp_path, '--stage', '2'])
    expected = f'{tmp_path} has no training set'
    assert done.returncode == 1 and expected in done.stderr
