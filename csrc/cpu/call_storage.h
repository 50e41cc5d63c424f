// Builds a Plan from the parameters of a call.
#pragma once

#include <vector>

#include "cpu/plan.h"

namespace stal {

// Owns the arrays that its plan points into. `params` must outlive it, and the values of
// offsets, prompt_ids and key_lengths must have been checked.
class PlanStorage {
 public:
  PlanStorage(const BlendedAttentionParams& params, int threads);
  PlanStorage(const PlanStorage&) = delete;
  PlanStorage& operator=(const PlanStorage&) = delete;

  Plan plan;

 private:
  std::vector<Prompt> prompts_;
  std::vector<Entry> entries_;
  std::vector<int64_t> begin_, users_;
};

}  // namespace stal
