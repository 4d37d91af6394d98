/* python.exe and pythonw.exe as python.org's are, a call of Py_Main in the DLL; and before it, two gaps of Wine 8
   are closed, which no program of the tests is to know of.

   x86_64-w64-mingw32-gcc -municode -DPYTHON_DLL='L"python311.dll"' [-mwindows -DWINDOWED] -o python.exe python.c */
#include <windows.h>
#include <shellapi.h>
#include <errno.h>
#include <stdio.h>

/* Every call of `name` that the module imports calls `own`; gives what it called before. */
static void *replace_import(HMODULE module, const char *name, void *own)
{
    BYTE *base = (BYTE *)module;
    IMAGE_NT_HEADERS *header = (void *)(base + ((IMAGE_DOS_HEADER *)base)->e_lfanew);
    DWORD imports = header->OptionalHeader.DataDirectory[IMAGE_DIRECTORY_ENTRY_IMPORT].VirtualAddress, access;
    IMAGE_IMPORT_DESCRIPTOR *from = (void *)(base + imports);
    void *before = NULL;
    for (; from->Name; from++) {
        IMAGE_THUNK_DATA *names = (void *)(base + from->OriginalFirstThunk);
        IMAGE_THUNK_DATA *calls = (void *)(base + from->FirstThunk);
        for (; names->u1.AddressOfData; names++, calls++) {
            if (IMAGE_SNAP_BY_ORDINAL(names->u1.Ordinal)
                    || strcmp((char *)((IMAGE_IMPORT_BY_NAME *)(base + names->u1.AddressOfData))->Name, name))
                continue;
            before = (void *)calls->u1.Function;
            VirtualProtect(calls, sizeof *calls, PAGE_READWRITE, &access);
            calls->u1.Function = (ULONG_PTR)own;
            VirtualProtect(calls, sizeof *calls, access, &access);
        }
    }
    return before;
}

/* 1. GenerateConsoleCtrlEvent always fails there. A Ctrl-Break for the group that a process leads is carried by an
   event with the process's number in its name, and raised in a thread of its own, as Windows does; a Ctrl-C is never
   delivered to such a group, and nothing says so. Both are what Windows documents. */
static int (*raise_signal)(int);

static void event_name(wchar_t *name, DWORD process) { swprintf(name, 40, L"ctrl-break-of-%lu", process); }

static BOOL WINAPI generate_ctrl_event(DWORD event, DWORD group)
{
    wchar_t name[40];
    HANDLE handle;
    if (event != CTRL_BREAK_EVENT)
        return TRUE;
    event_name(name, group);
    if (!(handle = OpenEventW(EVENT_MODIFY_STATE, FALSE, name)))
        return FALSE;
    SetEvent(handle);
    CloseHandle(handle);
    return TRUE;
}

static DWORD WINAPI await_ctrl_break(void *handle)
{
    while (WaitForSingleObject(handle, INFINITE) == WAIT_OBJECT_0)
        raise_signal(21); /* SIGBREAK */
    return 0;
}

static void listen_for_ctrl_break(void)
{
    wchar_t name[40];
    event_name(name, GetCurrentProcessId());
    CreateThread(NULL, 0, await_ctrl_break, CreateEventW(NULL, FALSE, FALSE, name), 0, NULL);
}

/* 2. _locking of what another has locked fails without an errno. */
static int (*lock_before)(int, int, long);
static int *(*address_of_errno)(void);

static int lock(int file, int mode, long bytes)
{
    int result;
    *address_of_errno() = 0;
    result = lock_before(file, mode, bytes);
    if (result == -1 && !*address_of_errno())
        *address_of_errno() = mode == 1 || mode == 3 ? EDEADLOCK : EACCES; /* LK_LOCK and LK_RLCK gave up waiting */
    return result;
}

static void close_gaps(HMODULE python)
{
    HMODULE crt = GetModuleHandleW(L"ucrtbase.dll");
    raise_signal = (void *)GetProcAddress(crt, "raise");
    address_of_errno = (void *)GetProcAddress(crt, "_errno");
    replace_import(python, "GenerateConsoleCtrlEvent", generate_ctrl_event);
    lock_before = replace_import(python, "_locking", lock);
    listen_for_ctrl_break();
}

/* The folder of this program, without the name, or of the interpreter that a virtual environment was made from. */
static void own_folder(wchar_t *path)
{
    GetModuleFileNameW(NULL, path, MAX_PATH);
    *wcsrchr(path, L'\\') = 0;
}

static void home_of_environment(wchar_t *home)
{
    wchar_t path[MAX_PATH], wide[2 * MAX_PATH];
    char line[2 * MAX_PATH];
    FILE *file;
    own_folder(path);
    wcscpy(wcsrchr(path, L'\\'), L"\\pyvenv.cfg");
    *home = 0;
    if (!(file = _wfopen(path, L"r")))
        return;
    while (fgets(line, sizeof line, file))
        if (MultiByteToWideChar(CP_UTF8, 0, line, -1, wide, 2 * MAX_PATH))
            swscanf(wide, L"home = %259l[^\r\n]", home);
    fclose(file);
}

static HMODULE load_python(void)
{
    wchar_t path[2 * MAX_PATH];
    HMODULE python;
    own_folder(path);
    wcscat(path, L"\\" PYTHON_DLL);
    if ((python = LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH)))
        return python;
    home_of_environment(path);
    wcscat(path, L"\\" PYTHON_DLL);
    return LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
}

static int run(int argc, wchar_t **argv)
{
    HMODULE python = load_python();
    if (!python) {
        fwprintf(stderr, L"cannot load " PYTHON_DLL L": %lu\n", GetLastError());
        return 101;
    }
    close_gaps(python);
    return ((int (*)(int, wchar_t **))(void *)GetProcAddress(python, "Py_Main"))(argc, argv);
}

#ifdef WINDOWED
int WINAPI wWinMain(HINSTANCE instance, HINSTANCE previous, PWSTR line, int show)
{
    int argc;
    wchar_t **argv = CommandLineToArgvW(GetCommandLineW(), &argc);
    return run(argc, argv);
}
#else
int wmain(int argc, wchar_t **argv) { return run(argc, argv); }
#endif
