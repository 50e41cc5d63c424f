// Builds a Call from its parameters.
#pragma once

#include <memory>
#include <vector>

#include "cpu/call.h"

namespace stal {

// Owns the arrays that its call points into. `params` must outlive it.
class CallStorage {
 public:
  // Throws std::invalid_argument for a value of offsets, prompt_ids, key_lengths or order that is
  // out of range and for a plan of another region, std::bad_alloc for sizes that are out of reach.
  CallStorage(const BlendedAttentionParams& params, int threads);
  CallStorage(const CallStorage&) = delete;
  CallStorage& operator=(const CallStorage&) = delete;

  Call call;

 private:
  static void CheckSizes(const BlendedAttentionParams& params, int threads);
  void CopyIndices(const BlendedAttentionParams& params);
  void OrderRows(const BlendedAttentionParams& params);
  void TakeOrder(const BlendedAttentionParams& params);
  void CheckPlanned(const BlendedAttentionParams& params) const;
  void CopyInOrder();

  std::vector<Prompt> prompts_;
  std::vector<Entry> entries_;
  std::vector<int64_t> begin_, users_, order_;
  std::unique_ptr<float[]> weight_;
  std::unique_ptr<uint8_t[]> region_;
};

}  // namespace stal
