// SPDX-License-Identifier: Apache-2.0
// Runs a grid of threadgroups, one after another. The threads of a threadgroup are fibers that run
// until a barrier or a function of their simdgroup, in an order that the caller chooses: a kernel
// whose result depends on it lacks a barrier.
#include "interface.h"
#include "fiber.h"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace msl_host {
namespace {
constexpr size_t kPage = 4096, kGuard = 1024 * 1024, kStack = 256 * 1024;
constexpr size_t kMostThreads = 1024, kMostThreadgroupBytes = 32768;

enum class State : uint8_t { Ready, AtSimdgroup, AtBarrier, Returned };

struct Fiber {
  Context context;
  char* stack = nullptr;
  State state;
  Thread thread;
  int site;
  void* sanitizer = nullptr;
};

struct Simdgroup {
  int lanes = 0, live = 0, arrived = 0, site = 0, function = 0;
  // Slots and mask of the last exchange stay readable while the next one fills the others.
  uint32_t generation = 0, mask[2] = {0, 0};
  alignas(16) unsigned char slots[2][kLanes][kSlotBytes];
};

// One dispatch at a time; the caller holds a lock.
struct Engine {
  std::vector<Fiber> fibers;
  std::vector<Simdgroup> simdgroups;
  Context scheduler;
  void* scheduler_sanitizer = nullptr;
  int current = -1, live = 0, at_barrier = 0, barrier_site = 0;
  unsigned threadgroup = 0;
  Entry entry = nullptr;
  void** buffers = nullptr;
  std::string error;
} engine;

int line_of(int site) { return site >> 10; }

void yield() {
  Fiber& self = engine.fibers[engine.current];
#ifdef MSL_THREAD_SANITIZER
  __tsan_switch_to_fiber(engine.scheduler_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  self.context.switch_to(engine.scheduler);
}

void resume(int index) {
  engine.current = index;
#ifdef MSL_THREAD_SANITIZER
  __tsan_switch_to_fiber(engine.fibers[index].sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  engine.scheduler.switch_to(engine.fibers[index].context);
}

[[noreturn]] void fail(const std::string& message) {
  if (engine.error.empty()) engine.error = message;
  engine.fibers[engine.current].state = State::Returned;
  for (;;) yield();
}

Simdgroup& simdgroup_of(const Fiber& fiber) {
  return engine.simdgroups[fiber.thread.simdgroup_index_in_threadgroup];
}

void release(Simdgroup& group, uint32_t index) {
  group.arrived = 0;
  group.generation++;
  for (int lane = 0; lane < group.lanes; lane++) {
    Fiber& fiber = engine.fibers[index * kLanes + lane];
    if (fiber.state == State::AtSimdgroup) fiber.state = State::Ready;
  }
}

#ifdef MSL_THREAD_SANITIZER
// Threadgroups run one after another on the same stacks and memory: no race between them.
char threadgroup_tags[2];
#endif

void run_thread() {
  Fiber& self = engine.fibers[engine.current];
#ifdef MSL_THREAD_SANITIZER
  __tsan_acquire(&threadgroup_tags[(engine.threadgroup + 1) & 1]);
#endif
  engine.entry(engine.buffers, &self.thread);
#ifdef MSL_THREAD_SANITIZER
  __tsan_release(&threadgroup_tags[engine.threadgroup & 1]);
#endif
  self.state = State::Returned;
  engine.live--;
  Simdgroup& group = simdgroup_of(self);
  group.live--;
  // The other lanes may have waited for this one alone.
  if (group.arrived && group.arrived == group.live)
    release(group, self.thread.simdgroup_index_in_threadgroup);
  for (;;) yield();
}

void prepare_thread(int index, const uint32_t group[3], const uint32_t whole[3],
                    const uint32_t size[3], const uint32_t groups[3], const uint32_t grid[3]) {
  Fiber& fiber = engine.fibers[index];
  fiber.state = State::Ready;
  fiber.site = 0;
  const uint32_t i = index, x = i % size[0], y = i / size[0] % size[1], z = i / size[0] / size[1];
  const uint32_t threads = size[0] * size[1] * size[2];
  Thread& t = fiber.thread;
  t.thread_position_in_threadgroup = {x, y, z};
  t.threadgroup_position_in_grid = {group[0], group[1], group[2]};
  t.thread_position_in_grid = {group[0] * whole[0] + x, group[1] * whole[1] + y,
                               group[2] * whole[2] + z};
  t.threads_per_threadgroup = {size[0], size[1], size[2]};
  t.dispatch_threads_per_threadgroup = {whole[0], whole[1], whole[2]};
  t.threadgroups_per_grid = {groups[0], groups[1], groups[2]};
  t.threads_per_grid = {grid[0], grid[1], grid[2]};
  t.thread_index_in_threadgroup = i;
  t.thread_index_in_simdgroup = i % kLanes;
  t.simdgroup_index_in_threadgroup = i / kLanes;
  t.simdgroups_per_threadgroup = (threads + kLanes - 1) / kLanes;
  t.threads_per_simdgroup = kLanes;
  Simdgroup& simdgroup = engine.simdgroups[i / kLanes];
  simdgroup.lanes++;
  simdgroup.live++;
  fiber.context.prepare(fiber.stack, kStack, run_thread);
#ifdef MSL_THREAD_SANITIZER
  if (fiber.sanitizer) __tsan_destroy_fiber(fiber.sanitizer);
  fiber.sanitizer = __tsan_create_fiber(0);
#endif
}

void report_stuck(const uint32_t group[3], int threads) {
  int count[4] = {}, line[4] = {};
  for (int i = 0; i < threads; i++) {
    const Fiber& fiber = engine.fibers[i];
    count[int(fiber.state)]++;
    line[int(fiber.state)] = line_of(fiber.site);
  }
  const int barrier = int(State::AtBarrier), simd = int(State::AtSimdgroup);
  char text[256];
  snprintf(text, sizeof text,
           "divergence in threadgroup (%u, %u, %u): %d threads wait at a threadgroup_barrier (line %d), "
           "%d at a simdgroup function (line %d), %d have returned",
           group[0], group[1], group[2], count[barrier], line[barrier], count[simd], line[simd],
           count[int(State::Returned)]);
  engine.error = text;
}

// The threads of one threadgroup, prepared, to their end; false with an error.
bool run_threadgroup(const uint32_t group[3], int threads, unsigned order, std::mt19937& random) {
  std::vector<int> turn(threads);
  for (int i = 0; i < threads; i++) turn[i] = order == 1 ? threads - 1 - i : i;
  while (engine.live > 0) {
    bool ran = false;
    if (order >= 2) std::shuffle(turn.begin(), turn.end(), random);
    for (int i : turn) {
      if (engine.fibers[i].state != State::Ready) continue;
      resume(i);
      ran = true;
      if (!engine.error.empty()) return false;
    }
    if (engine.live == 0) break;
    if (engine.at_barrier == threads) {
      engine.at_barrier = 0;
      for (int i = 0; i < threads; i++) engine.fibers[i].state = State::Ready;
    } else if (!ran) {
      report_stuck(group, threads);
      return false;
    }
  }
#ifdef MSL_THREAD_SANITIZER
  for (int i = 0; i < threads; i++) __tsan_acquire(&engine.fibers[i]);
#endif
  return true;
}

bool make_fibers(size_t count) {
  while (engine.fibers.size() < count) {
    char* memory = (char*)mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    mprotect(memory, kPage, PROT_NONE);  // a stack that is too small shows
    Fiber fiber;
    fiber.stack = memory + kPage;
    engine.fibers.push_back(fiber);
  }
  return true;
}

sigjmp_buf fault_exit;
char fault_text[256];

void on_fault(int signal, siginfo_t* info, void*) {
  const Thread& t = engine.fibers[engine.current].thread;
  const Position &p = t.thread_position_in_threadgroup, &g = t.threadgroup_position_in_grid;
  const char* what = signal == SIGILL || signal == SIGTRAP
      ? "undefined behaviour (an index out of a threadgroup array, a shift, an overflow or a division)"
      : "access outside a buffer, or a write to an input";
  snprintf(fault_text, sizeof fault_text,
           "%s at %p by thread (%u, %u, %u) of threadgroup (%u, %u, %u)", what, info->si_addr, p.x,
           p.y, p.z, g.x, g.y, g.z);
  siglongjmp(fault_exit, 1);
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

// While it lives, faults end the dispatch instead of the process.
struct FaultHandlers {
  struct sigaction before[5];
  stack_t stack_before;
  FaultHandlers() {
    static char* stack = (char*)malloc(65536);
    stack_t own{};
    own.ss_sp = stack;
    own.ss_size = 65536;
    sigaltstack(&own, &stack_before);
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 5; i++) sigaction(kSignals[i], &action, &before[i]);
  }
  ~FaultHandlers() {
    for (int i = 0; i < 5; i++) sigaction(kSignals[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
  }
};
}  // namespace

const unsigned char* simdgroup_exchange(const void* value, size_t bytes, int function, int site,
                                        uint32_t& mask, int& lane) {
  Fiber& self = engine.fibers[engine.current];
  Simdgroup& group = simdgroup_of(self);
  lane = self.thread.thread_index_in_simdgroup;
  const uint32_t generation = group.generation;
  const int half = generation & 1;
  if (group.arrived == 0) {
    group.site = site;
    group.function = function;
    group.mask[half] = 0;
  } else if (group.site != site || group.function != function) {
    fail("simdgroup divergence: lane " + std::to_string(lane) + " is at line " +
         std::to_string(line_of(site)) + " while others wait at line " +
         std::to_string(line_of(group.site)));
  }
  for (size_t i = 0; i < bytes; i++)
    group.slots[half][lane][i] = ((const unsigned char*)value)[i];
  group.mask[half] |= 1u << lane;
  group.arrived++;
  self.site = site;
  if (group.arrived == group.live) {
    release(group, self.thread.simdgroup_index_in_threadgroup);
  } else {
    self.state = State::AtSimdgroup;
    while (group.generation == generation) yield();
  }
  mask = group.mask[half];
  return group.slots[half][0];
}

void threadgroup_barrier(int site) {
  Fiber& self = engine.fibers[engine.current];
  if (engine.at_barrier == 0) engine.barrier_site = site;
  else if (engine.barrier_site != site)
    fail("threadgroup_barrier divergence: line " + std::to_string(line_of(site)) + " and line " +
         std::to_string(line_of(engine.barrier_site)));
  self.site = site;
  self.state = State::AtBarrier;
  engine.at_barrier++;
#ifdef MSL_THREAD_SANITIZER
  __tsan_release(&engine.at_barrier);
#endif
  yield();
#ifdef MSL_THREAD_SANITIZER
  __tsan_acquire(&engine.at_barrier);
#endif
}

void* simdgroup_tag() { return &simdgroup_of(engine.fibers[engine.current]); }
}  // namespace msl_host

using namespace msl_host;

extern "C" {
// libgcc before 13 lacks these: float to bfloat16, to nearest even.
__attribute__((weak)) __bf16 __truncsfbf2(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint16_t high = is_nan ? uint16_t(bits >> 16 | 0x40)
                               : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  __bf16 result;
  memcpy(&result, &high, 2);
  return result;
}
__attribute__((weak)) __bf16 __truncdfbf2(double value) { return __truncsfbf2((float)value); }

// Runs `entry` for every thread of a grid of threads, as Metal's dispatchThreads does: threadgroups
// at the edges are smaller. Order 0 is ascending, 1 descending, others are seeds of random orders.
// Returns 0, or 1 with a text in `error`.
int msl_host_dispatch(Entry entry, void** buffers, const uint32_t* grid, const uint32_t* threadgroup,
                      unsigned order, char* memory, char* memory_end, char* error, int error_bytes) {
  uint32_t whole[3], groups[3];
  for (int i = 0; i < 3; i++) {
    whole[i] = std::min(threadgroup[i], grid[i]);
    if (whole[i] == 0) {
      snprintf(error, error_bytes, "a grid or threadgroup of no threads");
      return 1;
    }
    groups[i] = (grid[i] + whole[i] - 1) / whole[i];
  }
  const size_t most = (size_t)threadgroup[0] * threadgroup[1] * threadgroup[2];
  if (most > kMostThreads) {
    snprintf(error, error_bytes, "a threadgroup of %zu threads: Metal allows 1024", most);
    return 1;
  }
  const size_t bytes = memory_end - memory;
  if (bytes > kMostThreadgroupBytes) {
    snprintf(error, error_bytes, "%zu bytes of threadgroup memory: Metal allows 32768", bytes);
    return 1;
  }
  if (!make_fibers((size_t)whole[0] * whole[1] * whole[2])) {
    snprintf(error, error_bytes, "no memory for stacks");
    return 1;
  }
  engine.error.clear();
  engine.entry = entry;
  engine.buffers = buffers;
#ifdef MSL_THREAD_SANITIZER
  engine.scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  FaultHandlers handlers;
  if (sigsetjmp(fault_exit, 1)) {
    snprintf(error, error_bytes, "%s", fault_text);
    return 1;
  }
  std::mt19937 random(order);
  const size_t count = (size_t)groups[0] * groups[1] * groups[2];
  std::vector<size_t> turn(count);
  for (size_t i = 0; i < count; i++) turn[i] = order == 1 ? count - 1 - i : i;
  if (order >= 2) std::shuffle(turn.begin(), turn.end(), random);
  for (size_t index : turn) {
    const uint32_t group[3] = {uint32_t(index % groups[0]), uint32_t(index / groups[0] % groups[1]),
                               uint32_t(index / groups[0] / groups[1])};
    uint32_t size[3];
    for (int i = 0; i < 3; i++) size[i] = std::min(whole[i], grid[i] - group[i] * whole[i]);
    const int threads = size[0] * size[1] * size[2];
    engine.threadgroup++;
    engine.simdgroups.assign((threads + kLanes - 1) / kLanes, Simdgroup{});
    engine.live = threads;
    engine.at_barrier = 0;
    memset(memory, 0xFF, bytes);  // NaN: what no thread wrote shows
    for (int i = 0; i < threads; i++) prepare_thread(i, group, whole, size, groups, grid);
    if (!run_threadgroup(group, threads, order, random)) {
      snprintf(error, error_bytes, "%s", engine.error.c_str());
      return 1;
    }
  }
  return 0;
}

// `bytes` that end, up to their alignment to 16, where nobody may read or write for a mebibyte, as
// nobody may before the first. All are 0xFF, a NaN. Null without memory.
void* msl_host_allocate(size_t bytes, void** base, size_t* total) {
  const size_t body = ((bytes ? bytes : 1) + kPage - 1) / kPage * kPage;
  *total = body + 2 * kGuard;
  char* memory = (char*)mmap(nullptr, *total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  mprotect(memory + kGuard, body, PROT_READ | PROT_WRITE);
  memset(memory + kGuard, 0xFF, body);
  *base = memory;
  return memory + kGuard + (body - (bytes + 15) / 16 * 16);
}
void msl_host_make_read_only(void* base, size_t total) {
  mprotect((char*)base + kGuard, total - 2 * kGuard, PROT_READ);
}
void msl_host_free(void* base, size_t total) { munmap(base, total); }
}
