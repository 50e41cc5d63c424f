// What bench/cpu_limit.cpp does before and at its first tile instruction, on a CPU with or without
// AMX. Linked with it, as compiled for level amx.
//
//   tiles granted      the request for permission seems to succeed
//   tiles refused      it fails
//
// `syscall` is this program's own, so permission is never given: the first tile instruction raises
// SIGILL where there is no AMX and where there is. Prints a line for each request of permission,
// then "tiles" and, of ldtilecfg, the 64 bytes that it reads, or "refused" if Multiply returns.
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

extern "C" bool Multiply(const float* zeros, int64_t rounds, int threads);

namespace {

long answer = -1;

// Of a general register as instructions number it.
uint64_t Value(const ucontext_t& context, int number) {
  constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kOrder[number]];
}

// Address in an instruction that begins with a VEX prefix of three bytes; 0: it has an index or is
// relative to the instruction, which the test then fails on.
uint64_t Address(const ucontext_t& context, const uint8_t* code) {
  const uint8_t mod = code[4] >> 6, low = code[4] & 7, high = code[1] & 0x20 ? 0 : 8;
  const bool has_index_byte = low == 4;
  const uint8_t* displacement = code + 5 + has_index_byte;
  if ((has_index_byte && code[5] != 0x24) || (mod == 0 && low == 5)) return 0;
  int32_t offset = 0;
  if (mod == 1) offset = static_cast<int8_t>(*displacement);
  if (mod == 2) std::memcpy(&offset, displacement, sizeof(offset));
  return Value(context, high + low) + offset;
}

// What nobody sets must not be zero by chance.
__attribute__((noinline)) void DirtyStack() {
  volatile uint8_t used[4096];
  for (volatile uint8_t& byte : used) byte = 0xa5;
}

void OnIllegal(int, siginfo_t*, void* data) {
  const ucontext_t& context = *static_cast<const ucontext_t*>(data);
  const uint8_t* code = reinterpret_cast<const uint8_t*>(context.uc_mcontext.gregs[REG_RIP]);
  // Tile instructions are in map 0F38 and have the opcodes 49, 4B and 5C.
  const bool is_tile = code[0] == 0xc4 && (code[1] & 31) == 2 &&
                       (code[3] == 0x49 || code[3] == 0x4b || code[3] == 0x5c);
  std::printf(is_tile ? "tiles" : "another instruction");
  const bool loads_configuration = is_tile && code[2] == 0x78 && code[3] == 0x49 && code[4] < 0xc0;
  const uint64_t address = loads_configuration ? Address(context, code) : 0;
  for (int i = 0; address && i < 64; ++i) {
    std::printf("%s%02x", i ? "" : " ", reinterpret_cast<const uint8_t*>(address)[i]);
  }
  std::printf("\n");
  std::fflush(stdout);
  _exit(0);
}

}  // namespace

extern "C" long syscall(long number, ...) noexcept {
  va_list arguments;
  va_start(arguments, number);
  const int code = va_arg(arguments, int), feature = va_arg(arguments, int);
  va_end(arguments);
  if (number == SYS_arch_prctl) std::printf("arch_prctl %#x %d\n", code, feature);
  return answer;
}

int main(int count, char** arguments) {
  if (count == 2 && std::strcmp(arguments[1], "granted") == 0) answer = 0;
  struct sigaction action = {};
  action.sa_sigaction = OnIllegal;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  DirtyStack();
  alignas(64) static const float zeros[512] = {};
  std::printf(Multiply(zeros, 1, 1) ? "multiplied\n" : "refused\n");
  return 0;
}
