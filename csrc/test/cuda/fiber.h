// A stack of instructions that is left in the middle and taken up again: one lane of a GPU.
#pragma once

#include <cstddef>

namespace stal::emulator {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The next Resume calls body(argument). A fiber that is in the middle forgets where it was, and
  // runs no destructors of it. body must not throw.
  void Start(void (*body)(void*), void* argument);

  // Runs until the fiber leaves or its body returns. Not to be called from a fiber.
  void Resume();

  // Goes back to the one who resumed this thread's running fiber.
  static void Leave();

  struct State;

 private:
  State* state_ = nullptr;
};

}  // namespace stal::emulator
