"""A stand-in for Windows' schtasks: python schtasks.py FOLDER ARGUMENTS. The tasks are files in the folder.

It takes the arguments that Microsoft documents for schtasks, and the XML that its Task Scheduler schema does:
types, order and limits of the elements are copied from there, of those that a task for a log-on can have.
"""
import os
import re
import sys
import xml.etree.ElementTree as ET

SPACE = '{http://schemas.microsoft.com/windows/2004/02/mit/task}'
CODE_PAGE = 'gbk'  # of what it prints, as on a Chinese Windows
BOOLEAN, DURATION, TEXT = r'true|false', r'P(?=.)(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?', r'(?s).+'


def whole(least, most):
    return lambda text: re.fullmatch(r'\d+', text) and least <= int(text) <= most


def minutes(least, most):
    def is_within(text):
        match = re.fullmatch(r'P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?', text)
        days, hours, rest, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
        return least <= days * 1440 + hours * 60 + rest + seconds / 60 <= most
    return is_within


class All(dict):
    """xs:all: each once at most, in any order."""


class Sequence(dict):
    """xs:sequence: in this order."""


RESTART = All(Interval=minutes(1, 31 * 1440), Count=whole(1, 255))
PRINCIPAL = All(UserId=TEXT, LogonType='S4U|Password|InteractiveToken|InteractiveTokenOrPassword', GroupId=TEXT,
                DisplayName=TEXT, RunLevel='LeastPrivilege|HighestAvailable')
SETTINGS = All(
    AllowStartOnDemand=BOOLEAN, RestartOnFailure=RESTART,
    MultipleInstancesPolicy='Parallel|Queue|IgnoreNew|StopExisting',
    DisallowStartIfOnBatteries=BOOLEAN, StopIfGoingOnBatteries=BOOLEAN, AllowHardTerminate=BOOLEAN,
    StartWhenAvailable=BOOLEAN, NetworkProfileName=TEXT, RunOnlyIfNetworkAvailable=BOOLEAN, WakeToRun=BOOLEAN,
    Enabled=BOOLEAN, Hidden=BOOLEAN, DeleteExpiredTaskAfter=DURATION, ExecutionTimeLimit=DURATION,
    Priority=whole(0, 10), RunOnlyIfIdle=BOOLEAN,
    IdleSettings=All(Duration=DURATION, WaitTimeout=DURATION, StopOnIdleEnd=BOOLEAN, RestartOnIdle=BOOLEAN))
TRIGGER = Sequence([
    ('Enabled', BOOLEAN), ('StartBoundary', TEXT), ('EndBoundary', TEXT),
    ('Repetition', All(Interval=minutes(1, 31 * 1440), Duration=minutes(1, 10 ** 9), StopAtDurationEnd=BOOLEAN)),
    ('ExecutionTimeLimit', DURATION), ('UserId', TEXT), ('Delay', DURATION)])
TASK = All(
    RegistrationInfo=All(URI=TEXT, SecurityDescriptor=TEXT, Source=TEXT, Date=TEXT, Author=TEXT, Version=TEXT,
                         Description=TEXT, Documentation=TEXT),
    Triggers=All(LogonTrigger=TRIGGER), Settings=SETTINGS, Principals=All(Principal=PRINCIPAL),
    Actions=All(Exec=All(Command=TEXT, Arguments=TEXT, WorkingDirectory=TEXT)))


def read_task(data):
    """The root of a task's XML file. ValueError with what the scheduler would not take."""
    if data[:2] != b'\xff\xfe':
        raise ValueError('(1,1)::ERROR: not UTF-16 with a mark of the byte order')
    root = ET.fromstring(data.decode('utf-16').partition('?>')[2])
    if root.tag != SPACE + 'Task' or not re.fullmatch(r'1\.[1-4]', root.get('version', '')):
        raise ValueError('ERROR: no Task of a known version')
    check(root, TASK)
    ids = [principal.get('id') for principal in root.iter(SPACE + 'Principal')]
    if root.find(SPACE + 'Actions').get('Context') not in ids:
        raise ValueError('ERROR: Context names no principal')
    return root


def check(element, rule):
    name = element.tag.replace(SPACE, '')
    if not isinstance(rule, dict):
        fits = rule(element.text or '') if callable(rule) else re.fullmatch(rule, element.text or '')
        if not fits or len(element):
            raise ValueError('ERROR: %s: %r' % (name, element.text))
        return
    names = [child.tag.replace(SPACE, '') for child in element]
    known = [key for key in rule if key in names]
    if sorted(names) != sorted(known) or (isinstance(rule, Sequence) and names != known):
        raise ValueError('ERROR: children of %s: %s' % (name, names))
    for child in element:
        check(child, rule[child.tag.replace(SPACE, '')])


def main(folder, *words):
    """The exit code of a command."""
    shape = [word if re.fullmatch('/[A-Za-z]+', word) else '' for word in words]
    name = words[2] if len(words) > 2 else ''
    path = os.path.join(folder, name)
    if shape == ['/Create', '/TN', '', '/XML', '', '/F']:
        with open(words[4], 'rb') as file:
            data = file.read()
        try:
            read_task(data)
        except (ValueError, ET.ParseError) as error:
            return say(sys.stderr, '错误: 任务 XML 的格式不正确。\n%s' % error, 1)
        with open(path, 'wb') as file:
            file.write(data)
        return say(sys.stdout, '成功: 成功创建计划任务 "%s"。' % name, 0)
    if shape not in (['/Query', '/TN', '', '/XML'], ['/End', '/TN', ''], ['/Delete', '/TN', '', '/F']):
        return say(sys.stderr, '错误: 无效参数/选项 - %s' % ' '.join(words), 1)
    if not os.path.exists(path):
        return say(sys.stderr, '错误: 系统找不到指定的文件。', 1)
    return known_task(path, words[0])


def known_task(path, verb):
    if verb == '/Delete':
        os.remove(path)
    if verb == '/Query':
        with open(path, 'rb') as file:
            return say(sys.stdout, file.read().decode('utf-16'), 0)
    return say(sys.stdout, '成功', 0)


def say(stream, text, code):
    stream.buffer.write(text.encode(CODE_PAGE, 'replace'))
    return code


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
