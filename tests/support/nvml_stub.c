/* A libnvidia-ml.so.1 for the tests: says what a state file says, whose path is in PORTREEVE_NVML_STUB. It is read again at
 * each nvmlDeviceGetCount_v2, with which a look begins. One word or figure after the other, a statement a line:
 *
 *   init CODE                    nvmlInit_v2 fails with this code (nvmlReturn_t)
 *   count CODE                   nvmlDeviceGetCount_v2 fails with it
 *   hang init|count|memory|processes    that call never returns
 *   crash init|count|memory|processes   that call dies of SIGSEGV
 *   gpu UUID BUS NAME…           a GPU; what follows is about it
 *   part UUID NAME…              a part of the last GPU, which is split then; what follows is about it
 *   minor N                      of /dev/nvidiaN
 *   lost CODE                    its handle cannot be had
 *   memory TOTAL FREE            in MiB, with all the processes below alive
 *   memory CODE                  the question fails with it; 3 is "not supported"
 *   settle LOOKS FREE            from so many looks at this file on, so much is free
 *   returns MS                   what a process had is free so long after its end was seen (at once)
 *   compute|mps|graphics PID [MIB]      while PID lives; no figure without MIB
 *   ghost PID [MIB]              as compute, whether it lives or not
 *   fails compute|mps|graphics|mig|parts CODE   that question fails
 *
 * Compiled with -DWITHOUT_V2 it is a library of a driver before 510, with -DWITHOUT_MIG one before MIG, with -DWITHOUT_LISTS
 * one that is of no use. */

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SHORT = 7, UNKNOWN = 999 };
enum { COMPUTE, MPS, GRAPHICS, KINDS };
enum { MOST_GPUS = 16, MOST_HOLDERS = 64 };
static const char *const KIND[] = { "compute", "mps", "graphics" };

typedef struct { unsigned pid; int kind, is_ghost; long long mib; } Holder;
typedef struct {
    char uuid[96], bus[32], name[96];
    int parent, minor, lost, memory, settles_at, mig_fails, parts_fail, fails[KINDS], holders;
    long long total, free, settled, returns_ms;
    Holder holder[MOST_HOLDERS];
} Gpu;
typedef struct { unsigned pid; struct timespec at; } End;

static struct { int init, count; char hang[32], crash[32]; int gpus; Gpu gpu[MOST_GPUS]; } S;
static struct stat seen;
static int looks, ends;
static End end[MOST_HOLDERS];

static void read_state(void) {
    const char *path = getenv("PORTREEVE_NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    struct stat now;
    if (!file || fstat(fileno(file), &now)) { S.init = UNKNOWN; return; }
    int is_new = now.st_ino != seen.st_ino || now.st_mtim.tv_nsec != seen.st_mtim.tv_nsec || now.st_mtim.tv_sec != seen.st_mtim.tv_sec;
    looks = is_new ? 0 : looks;
    seen = now;
    memset(&S, 0, sizeof S);
    char line[512], a[128], b[128], c[128];
    Gpu *gpu = NULL;
    while (fgets(line, sizeof line, file)) {
        int words = sscanf(line, "%127s %127s %127s", a, b, c), at = 0;
        if (words < 2 || a[0] == '#') continue;
        if (!strcmp(a, "init")) S.init = atoi(b);
        else if (!strcmp(a, "count")) S.count = atoi(b);
        else if (!strcmp(a, "hang")) snprintf(S.hang, sizeof S.hang, "%.31s", b);
        else if (!strcmp(a, "crash")) snprintf(S.crash, sizeof S.crash, "%.31s", b);
        else if (!strcmp(a, "gpu") || !strcmp(a, "part")) {
            int is_part = a[0] == 'p', parent = -1;
            for (int i = 0; is_part && i < S.gpus; i++) if (S.gpu[i].parent < 0) parent = i;
            gpu = &S.gpu[S.gpus++];
            gpu->parent = parent;
            gpu->memory = UNSUPPORTED;
            snprintf(gpu->uuid, sizeof gpu->uuid, "%.95s", b);
            if (!is_part) snprintf(gpu->bus, sizeof gpu->bus, "%.31s", c);
            sscanf(line, is_part ? "%*s %*s %n" : "%*s %*s %*s %n", &at);
            snprintf(gpu->name, sizeof gpu->name, "%.95s", line + at);
            gpu->name[strcspn(gpu->name, "\n")] = 0;
        } else if (!gpu) continue;
        else if (!strcmp(a, "minor")) gpu->minor = atoi(b);
        else if (!strcmp(a, "lost")) gpu->lost = atoi(b);
        else if (!strcmp(a, "memory")) {
            gpu->memory = words == 3 ? SUCCESS : atoi(b);
            if (words == 3) gpu->total = atoll(b), gpu->free = atoll(c);
        } else if (!strcmp(a, "settle")) gpu->settles_at = atoi(b), gpu->settled = atoll(c);
        else if (!strcmp(a, "returns")) gpu->returns_ms = atoll(b);
        else if (!strcmp(a, "fails")) {
            if (!strcmp(b, "mig")) gpu->mig_fails = atoi(c);
            if (!strcmp(b, "parts")) gpu->parts_fail = atoi(c);
            for (int k = 0; k < KINDS; k++) if (!strcmp(b, KIND[k])) gpu->fails[k] = atoi(c);
        } else for (int k = 0; k <= KINDS; k++) if (!strcmp(a, k < KINDS ? KIND[k] : "ghost")) {
            Holder *holder = &gpu->holder[gpu->holders++];
            holder->pid = (unsigned)atoi(b), holder->mib = words == 3 ? atoll(c) : -1;
            holder->kind = k < KINDS ? k : COMPUTE, holder->is_ghost = k == KINDS;
        }
    }
    fclose(file);
}

static void meet(const char *call) {
    if (!strcmp(S.crash, call)) signal(SIGSEGV, SIG_DFL), raise(SIGSEGV);
    while (!strcmp(S.hang, call)) pause();
}

/* Not a zombie: that has given its memory back. */
static int is_alive(unsigned pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    char *state = strrchr(text, ')');
    return state && state[1] && state[2] != 'Z' && state[2] != 'X';
}

static long long ended_for_ms(unsigned pid) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int i = 0;
    while (i < ends && end[i].pid != pid) i++;
    if (i == ends && ends < MOST_HOLDERS) end[ends++] = (End){ pid, now };
    if (i == MOST_HOLDERS) return 0;
    return (now.tv_sec - end[i].at.tv_sec) * 1000LL + (now.tv_nsec - end[i].at.tv_nsec) / 1000000;
}

typedef Gpu *Device;

int nvmlInit_v2(void) { read_state(); meet("init"); return S.init; }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "570.00"); return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    read_state();
    meet("count");
    looks++;
    *count = 0;
    for (int i = 0; i < S.gpus; i++) *count += S.gpu[i].parent < 0;
    return S.count;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    for (int i = 0; i < S.gpus; i++) if (S.gpu[i].parent < 0 && index-- == 0) {
        *device = &S.gpu[i];
        return S.gpu[i].lost;
    }
    return INVALID;
}

int nvmlDeviceGetUUID(Device gpu, char *text, unsigned length) { snprintf(text, length, "%s", gpu->uuid); return SUCCESS; }
int nvmlDeviceGetName(Device gpu, char *text, unsigned length) { snprintf(text, length, "%s", gpu->name); return SUCCESS; }
int nvmlDeviceGetMinorNumber(Device gpu, unsigned *minor) { *minor = (unsigned)gpu->minor; return SUCCESS; }

typedef struct { char legacy[16]; unsigned domain, bus, device, id, sub; char text[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(Device gpu, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    snprintf(pci->text, sizeof pci->text, "%s", gpu->bus);
    return gpu->parent < 0 ? SUCCESS : UNSUPPORTED;
}

static int memory(Gpu *gpu, unsigned long long *total, unsigned long long *free_bytes) {
    meet("memory");
    long long free_mib = gpu->settles_at && looks >= gpu->settles_at ? gpu->settled : gpu->free;
    for (int i = 0; i < gpu->holders; i++) {
        Holder *holder = &gpu->holder[i];
        int is_back = !holder->is_ghost && holder->mib > 0 && !is_alive(holder->pid) && ended_for_ms(holder->pid) >= gpu->returns_ms;
        free_mib += is_back ? holder->mib : 0;
    }
    *total = (unsigned long long)gpu->total << 20, *free_bytes = (unsigned long long)free_mib << 20;
    return gpu->memory;
}

typedef struct { unsigned long long total, free, used; } MemoryV1;
int nvmlDeviceGetMemoryInfo(Device gpu, MemoryV1 *m) { m->used = 0; return memory(gpu, &m->total, &m->free); }
#ifndef WITHOUT_V2
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
int nvmlDeviceGetMemoryInfo_v2(Device gpu, MemoryV2 *m) {
    return m->version == (sizeof *m | 2 << 24) ? memory(gpu, &m->total, &m->free) : 25;
}
#endif

typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } Process;
static int add(Gpu *gpu, int kind, unsigned *found, unsigned room, Process *list) {
    for (int i = 0; i < gpu->holders; i++) {
        Holder *holder = &gpu->holder[i];
        if (holder->kind != kind || (!holder->is_ghost && !is_alive(holder->pid))) continue;
        if (*found < room)
            list[*found] = (Process){ holder->pid, holder->mib < 0 ? ~0ULL : (unsigned long long)holder->mib << 20, ~0U, ~0U };
        ++*found;
    }
    return gpu->fails[kind];
}

static int processes(Gpu *gpu, int kind, unsigned *count, Process *list) {
    meet("processes");
    unsigned room = list ? *count : 0;
    *count = 0;
    int code = add(gpu, kind, count, room, list);
    /* As the real one: a split GPU lists what its parts hold. */
    for (int i = 0; i < S.gpus; i++) if (gpu->parent < 0 && S.gpu[i].parent == gpu - S.gpu) add(&S.gpu[i], kind, count, room, list);
    return code ? code : *count > room ? TOO_SHORT : SUCCESS;
}

#ifndef WITHOUT_LISTS
#ifdef WITHOUT_V2
int nvmlDeviceGetComputeRunningProcesses_v2(Device gpu, unsigned *count, Process *list) { return processes(gpu, COMPUTE, count, list); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(Device gpu, unsigned *count, Process *list) { return processes(gpu, GRAPHICS, count, list); }
#else
int nvmlDeviceGetComputeRunningProcesses_v3(Device gpu, unsigned *count, Process *list) { return processes(gpu, COMPUTE, count, list); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device gpu, unsigned *count, Process *list) { return processes(gpu, GRAPHICS, count, list); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Device gpu, unsigned *count, Process *list) { return processes(gpu, MPS, count, list); }
#endif
#endif

#ifndef WITHOUT_MIG
static int part(Gpu *gpu, unsigned number, Device *device) {
    for (int i = 0; i < S.gpus; i++) if (S.gpu[i].parent == gpu - S.gpu && number-- == 0) {
        *device = &S.gpu[i];
        return SUCCESS;
    }
    return NOT_FOUND;
}
int nvmlDeviceGetMigMode(Device gpu, unsigned *now, unsigned *then) {
    Device first;
    *now = *then = part(gpu, 0, &first) == SUCCESS;
    return gpu->parent < 0 ? gpu->mig_fails : UNSUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(Device gpu, unsigned *count) { *count = 7; return gpu->parent < 0 ? SUCCESS : UNSUPPORTED; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device gpu, unsigned number, Device *device) {
    return gpu->parts_fail ? gpu->parts_fail : part(gpu, number, device);
}
#endif
