// A jump between stacks is what the checked longjmp refuses.
#undef _FORTIFY_SOURCE

#include "fiber.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace stal::emulator {

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = size_t{512} << 10;

// Tells the sanitizer which stack is entered; `leaving` keeps its own notes about the one left.
void Announce(void** leaving, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(leaving, stack, bytes);
}
void Arrive(void* entered, const void** from, size_t* bytes) {
  __sanitizer_finish_switch_fiber(entered, from, bytes);
}
void Forget(void* stack, size_t bytes) { __asan_unpoison_memory_region(stack, bytes); }
#else
constexpr size_t kStackBytes = size_t{128} << 10;

void Announce(void**, const void*, size_t) {}
void Arrive(void*, const void**, size_t*) {}
void Forget(void*, size_t) {}
#endif

}  // namespace

// ucontext enters a new stack; setjmp, which makes no system call, goes to and fro.
struct Fiber::State {
  char* memory = nullptr;  // a page that nobody may touch, then the stack
  size_t guard = 0;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  bool is_new = false;
  jmp_buf inside, outside;
  void* inside_notes = nullptr;
  void* outside_notes = nullptr;
  const void* outside_stack = nullptr;
  size_t outside_bytes = 0;

  char* stack() const { return memory + guard; }
};

namespace {

thread_local Fiber::State* running = nullptr;

void Run() {
  Fiber::State* const state = running;
  Arrive(nullptr, &state->outside_stack, &state->outside_bytes);
  // A fiber whose body has returned stays here, so that its stack is never freed under it.
  state->body(state->argument);
  for (;;) Fiber::Leave();
}

}  // namespace

Fiber::~Fiber() {
  if (state_ == nullptr) return;
  munmap(state_->memory, state_->guard + kStackBytes);
  delete state_;
}

void Fiber::Start(void (*body)(void*), void* argument) {
  if (state_ == nullptr) {
    state_ = new State;
    state_->guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* const memory = mmap(nullptr, state_->guard + kStackBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    state_->memory = static_cast<char*>(memory);
    mprotect(memory, state_->guard, PROT_NONE);
  }
  state_->body = body;
  state_->argument = argument;
  state_->is_new = true;
}

void Fiber::Resume() {
  State* const state = state_;
  running = state;
  if (_setjmp(state->outside) == 0) {
    Announce(&state->outside_notes, state->stack(), kStackBytes);
    if (!state->is_new) _longjmp(state->inside, 1);
    state->is_new = false;
    Forget(state->stack(), kStackBytes);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = state->stack();
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, Run, 0);
    setcontext(&context);
  }
  // Locals may be lost over the jump.
  Arrive(running->outside_notes, nullptr, nullptr);
  running = nullptr;
}

void Fiber::Leave() {
  State* const state = running;
  if (_setjmp(state->inside) == 0) {
    Announce(&state->inside_notes, state->outside_stack, state->outside_bytes);
    _longjmp(state->outside, 1);
  }
  Arrive(running->inside_notes, &running->outside_stack, &running->outside_bytes);
}

}  // namespace stal::emulator
