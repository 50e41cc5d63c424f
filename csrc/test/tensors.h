// The tensors of a case, each in an allocation of exactly the bytes that its strides span.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "case.h"
#include "exact.h"

namespace stal::test {

int64_t ElementSize(DType dtype);
double Decode(const char* p, DType dtype);
// Towards zero, and to the largest number where x is larger.
void Encode(double x, DType dtype, char* p);

constexpr char kUntouched = 0x5a;

class Tensor {
 public:
  Tensor() = default;

  // Its first element lies `shift` bytes behind an aligned address. It is null if it has none.
  Tensor(const std::array<int64_t, 5>& sizes, const Strides& strides, int64_t element_size,
         int64_t shift)
      : strides(strides), sizes_(sizes), element_size_(element_size), shift_(shift) {
    const int64_t steps[] = {strides.batch, strides.prompt, strides.head, strides.row, 1};
    int64_t last = 0;
    for (int i = 0; i < 5; ++i) {
      if (sizes[i] == 0) return;
      last += (sizes[i] - 1) * steps[i];
    }
    bytes_ = shift + (last + 1) * element_size;
    memory_.reset(new char[bytes_]);
    std::memset(memory_.get(), kUntouched, bytes_);
  }

  char* data() const { return memory_ ? memory_.get() + shift_ : nullptr; }

  // body(element, index in logical order).
  template <typename Body>
  void ForEach(const Body& body) const {
    if (!memory_) return;
    int64_t index = 0;
    for (int64_t b = 0; b < sizes_[0]; ++b) {
      for (int64_t p = 0; p < sizes_[1]; ++p) {
        for (int64_t h = 0; h < sizes_[2]; ++h) {
          for (int64_t r = 0; r < sizes_[3]; ++r) {
            const int64_t offset =
                b * strides.batch + p * strides.prompt + h * strides.head + r * strides.row;
            for (int64_t i = 0; i < sizes_[4]; ++i) {
              body(data() + (offset + i) * element_size_, index++);
            }
          }
        }
      }
    }
  }

  // Whether every byte that belongs to no element is as it was.
  bool GapsAreUntouched() const {
    if (!memory_) return true;
    std::vector<bool> used(bytes_);
    ForEach([&](const char* element, int64_t) {
      const int64_t first = element - memory_.get();
      for (int64_t i = 0; i < element_size_; ++i) used[first + i] = true;
    });
    for (int64_t i = 0; i < bytes_; ++i) {
      if (!used[i] && memory_[i] != kUntouched) return false;
    }
    return true;
  }

  Strides strides;

 private:
  std::array<int64_t, 5> sizes_ = {};
  int64_t element_size_ = 0, shift_ = 0, bytes_ = 0;
  std::unique_ptr<char[]> memory_;
};

DType DTypeOf(const Case& c, const std::string& name);

// q, k, v, dout and their like begin at a multiple of `alignment` bytes.
Tensor Allocate(const Case& c, const std::string& name, int64_t alignment = 1);

// Fills the inputs of a case. Elements may share memory, so what may not be read is written first.
std::map<std::string, Tensor> Fill(const Case& c, int64_t alignment = 1);

template <typename Pointer>
void Set(const std::map<std::string, Tensor>& tensors, const char* name, Strided<Pointer>* to) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return;
  to->data = reinterpret_cast<Pointer>(found->second.data());
  to->strides = found->second.strides;
}

// All of a case but its tensors.
BlendedAttentionParams ParamsOf(const Case& c);

std::string Number(double x);

// The first element that is wrong, or "".
std::string Compare(const std::string& name, const Tensor& actual, DType dtype,
                    const Exact& exact);

}  // namespace stal::test
