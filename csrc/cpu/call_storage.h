// Builds a Call from its parameters.
#pragma once

#include <vector>

#include "cpu/call.h"

namespace stal {

// Owns the arrays that its call points into. `params` must outlive it, and the values of
// offsets, prompt_ids and key_lengths must have been checked.
class CallStorage {
 public:
  CallStorage(const BlendedAttentionParams& params, int threads);
  CallStorage(const CallStorage&) = delete;
  CallStorage& operator=(const CallStorage&) = delete;

  Call call;

 private:
  std::vector<Prompt> prompts_;
  std::vector<Entry> entries_;
  std::vector<int64_t> begin_, users_;
};

}  // namespace stal
