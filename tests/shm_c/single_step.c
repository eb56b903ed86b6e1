/* Runs a program instruction by instruction through some of its functions.
 *
 *     single_step FILE SNAPSHOTS PROGRAM ARGUMENT...
 *     single_step FILE CALL STEP PROGRAM ARGUMENT...
 *
 * The program maps FILE shared, writes into its first words how many functions there are and the
 * address of each, and stops itself (SIGSTOP).  From then on it runs at full speed outside of these
 * functions, and step by step inside them.
 *
 * In the first form FILE's bytes, where a step has changed them, are appended to SNAPSHOTS, behind
 * the number of the call and of the step in it, both from 1, as words of 8 bytes.  A line is printed
 * for each call: which function, from 0; how many steps it had; how many full fences (mfence, or a
 * locked instruction) there were behind the last change of FILE.  In the second form the program is
 * killed after STEP instructions of one call, or at that call's end if it has fewer.
 *
 * Exit code: 0 well, 77 tracing is not permitted here, else a message says what went wrong.
 */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define FUNCTIONS_MAX 8
#define NOT_PERMITTED 77
#define BREAKPOINT 0xCCL
#define KNOWN 4096
#define LOCK 0xF0
#define MFENCE 0xF0AE0F

static pid_t child;
static const unsigned char *shared, *end_of_shared;
static unsigned char *last;
static FILE *snapshots;

static void fail(const char *what)
{
    fprintf(stderr, "single_step: %s: %s\n", what, strerror(errno));
    if (child > 0)
        kill(child, SIGKILL);
    exit(1);
}

static long trace(int request, uint64_t address, uint64_t data)
{
    errno = 0;
    long result = ptrace(request, child, (void *)address, (void *)data);
    if (errno != 0)
        fail("ptrace");
    return result;
}

/* Wait for the child: the signal that stopped it, or 0 if it has ended well. */
static int wait_for_stop(void)
{
    int status;
    if (waitpid(child, &status, 0) != child)
        fail("waitpid");
    if (WIFSTOPPED(status))
        return WSTOPSIG(status);
    child = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_PERMITTED)
        exit(NOT_PERMITTED);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "single_step: the program ended with status %#x\n", status);
        exit(1);
    }
    return 0;
}

static void start(char **command)
{
    child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(NOT_PERMITTED);
        execv(command[0], command);
        _exit(1);
    }
    if (wait_for_stop() != SIGTRAP) /* by execv */
        fail("the program did not start");
    trace(PTRACE_SETOPTIONS, 0, PTRACE_O_EXITKILL);
    trace(PTRACE_CONT, 0, 0);
    if (wait_for_stop() != SIGSTOP)
        fail("the program did not stop itself");
}

/* --- breakpoints ------------------------------------------------------------------------------*/

typedef struct {
    uint64_t address;
    long code; /* the word that was there */
} Function;

static Function functions[FUNCTIONS_MAX];
static uint64_t count;

static void set_breakpoints(int set)
{
    for (uint64_t f = 0; f < count; f++) {
        long code = functions[f].code;
        trace(PTRACE_POKETEXT, functions[f].address,
              (uint64_t)(set ? (code & ~0xFFL) | BREAKPOINT : code));
    }
}

static void read_functions(void)
{
    const volatile uint64_t *words = (const volatile uint64_t *)shared;
    count = words[0];
    if (count > FUNCTIONS_MAX)
        fail("too many functions");
    for (uint64_t f = 0; f < count; f++) {
        functions[f].address = words[1 + f];
        functions[f].code = trace(PTRACE_PEEKTEXT, functions[f].address, 0);
    }
}

/* --- steps ------------------------------------------------------------------------------------*/

/* Keep the memory if it has changed; say so. */
static int take_snapshot(uint64_t call, uint64_t step)
{
    size_t size = (size_t)(end_of_shared - shared);
    if (memcmp(last, shared, size) == 0)
        return 0;
    memcpy(last, shared, size);
    if (fwrite(&call, sizeof call, 1, snapshots) != 1 ||
        fwrite(&step, sizeof step, 1, snapshots) != 1 || fwrite(last, size, 1, snapshots) != 1)
        fail("fwrite");
    return 1;
}

/* Say whether the instruction there orders every store before it before every load after it. */
static int is_fence(uint64_t address)
{
    static struct {
        uint64_t address;
        int fence;
    } known[KNOWN]; /* asking the kernel at every step would take as long as the steps */
    uint64_t place = address % KNOWN;
    if (known[place].address != address) {
        uint64_t code = (uint64_t)trace(PTRACE_PEEKTEXT, address, 0);
        known[place].address = address;
        known[place].fence = (code & 0xFF) == LOCK || (code & 0xFFFFFF) == MFENCE;
    }
    return known[place].fence;
}

typedef struct {
    uint64_t steps;
    uint64_t fences; /* behind the last change of the memory */
} Steps;

/* Step through the function whose first instruction is next. */
static Steps step_through(uint64_t call, uint64_t steps_max)
{
    struct user_regs_struct registers;
    trace(PTRACE_GETREGS, 0, (uint64_t)&registers);
    uint64_t stack = registers.rsp;
    Steps taken = {0, 0};
    do {
        int fence = snapshots != NULL && is_fence(registers.rip);
        trace(PTRACE_SINGLESTEP, 0, 0);
        if (wait_for_stop() != SIGTRAP)
            fail("a signal in the middle of a function");
        taken.steps++;
        if (snapshots != NULL && take_snapshot(call, taken.steps))
            taken.fences = 0;
        taken.fences += (uint64_t)fence;
        trace(PTRACE_GETREGS, 0, (uint64_t)&registers);
    } while (registers.rsp <= stack && taken.steps < steps_max); /* until it has returned */
    return taken;
}

/* Move the child, stopped by a breakpoint, back to the instruction that belongs there; return which
 * function that begins. */
static uint64_t go_back(void)
{
    struct user_regs_struct registers;
    trace(PTRACE_GETREGS, 0, (uint64_t)&registers);
    registers.rip--;
    trace(PTRACE_SETREGS, 0, (uint64_t)&registers);
    for (uint64_t f = 0; f < count; f++)
        if (functions[f].address == registers.rip)
            return f;
    fail("a trap that is no breakpoint");
    return 0;
}

static void map(const char *path)
{
    struct stat about;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fstat(descriptor, &about) < 0)
        fail(path);
    size_t size = (size_t)about.st_size;
    shared = mmap(NULL, size, PROT_READ, MAP_SHARED, descriptor, 0);
    last = calloc(1, size);
    if (shared == MAP_FAILED || last == NULL)
        fail("mmap");
    end_of_shared = shared + size;
    close(descriptor);
}

/* Run to the next call of one of the functions, say which; 0 if the program has ended. */
static int run_to_call(uint64_t *function)
{
    set_breakpoints(1);
    trace(PTRACE_CONT, 0, 0);
    int signal_number = wait_for_stop();
    if (signal_number == 0)
        return 0;
    if (signal_number != SIGTRAP)
        fail("a signal outside of the functions");
    set_breakpoints(0);
    *function = go_back();
    return 1;
}

int main(int argc, char **argv)
{
    int killing = argc > 3 && argv[2][strspn(argv[2], "0123456789")] == 0;
    if (argc < 4 + killing) {
        fprintf(stderr, "single_step FILE {SNAPSHOTS | CALL STEP} PROGRAM ARGUMENT...\n");
        return 2;
    }
    map(argv[1]);
    uint64_t kill_call = killing ? strtoull(argv[2], NULL, 10) : 0;
    uint64_t kill_step = killing ? strtoull(argv[3], NULL, 10) : 0;
    if (!killing && (snapshots = fopen(argv[2], "wbe")) == NULL)
        fail(argv[2]);
    start(argv + 3 + killing);
    read_functions();
    uint64_t function;
    for (uint64_t call = 1; run_to_call(&function); call++) {
        if (!killing) {
            Steps taken = step_through(call, UINT64_MAX);
            printf("%llu %llu %llu\n", (unsigned long long)function,
                   (unsigned long long)taken.steps, (unsigned long long)taken.fences);
        } else if (call < kill_call) {
            step_through(call, 1); /* off the breakpoint */
        } else {
            step_through(call, kill_step);
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            return 0;
        }
    }
    if (killing)
        fail("so many calls there were not");
    if (fclose(snapshots) != 0)
        fail("fclose");
    return 0;
}
