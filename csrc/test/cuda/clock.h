// Who knows of what: vector clocks, by which a race shows whatever order the lanes ran in.
//
// A lane counts its own moments and begins a new one whenever it publishes what it did. What it
// knows of another lane is the last moment that has reached it through barriers. The products that
// a warp has under way read memory on their own; each warp counts those too, behind the lanes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

namespace stal::emulator {

constexpr int kWarpLanes = 32, kWarpgroupLanes = 128, kMaxLanes = 512;
constexpr int kMaxWarps = kMaxLanes / kWarpLanes;

using Moment = uint32_t;

struct Clock {
  std::array<Moment, kMaxLanes + kMaxWarps> at = {};

  void Join(const Clock& other) {
    for (size_t i = 0; i < at.size(); ++i) at[i] = std::max(at[i], other.at[i]);
  }
  // What both know.
  void Intersect(const Clock& other) {
    for (size_t i = 0; i < at.size(); ++i) at[i] = std::min(at[i], other.at[i]);
  }
};

using ClockRef = std::shared_ptr<const Clock>;

// What one lane knows. Beside the shared clock, which says nothing new about the lane itself, it
// has its own moments.
struct Knowledge {
  ClockRef seen;                // what happened before
  ClockRef fenced;              // and is visible to the asynchronous proxy
  Moment now = 1;               // of the lane
  Moment fenced_now = 0;        // its last moment that it fenced itself
  Moment products_done = 0;     // of its warp: the last product that it waited for
};

// What a barrier gathers from those who arrive and hands to those who leave.
struct Gathered {
  ClockRef seen, fenced;
};

class Gathering {
 public:
  bool empty() const { return seen_ == nullptr; }

  void Add(int lane, const Knowledge& knows) {
    if (empty()) {
      seen_ = std::make_unique<Clock>(*knows.seen);
      fenced_ = std::make_unique<Clock>(*knows.fenced);
    } else {
      // Lanes that left the last barrier together share their clocks.
      if (knows.seen != last_seen_) seen_->Join(*knows.seen);
      if (knows.fenced != last_fenced_) fenced_->Join(*knows.fenced);
    }
    last_seen_ = knows.seen;
    last_fenced_ = knows.fenced;
    Raise(&seen_->at[lane], knows.now);
    Raise(&seen_->at[kMaxLanes + lane / kWarpLanes], knows.products_done);
    Raise(&fenced_->at[lane], knows.fenced_now);
  }

  Gathered Finish() {
    last_seen_ = last_fenced_ = nullptr;
    return {std::move(seen_), std::move(fenced_)};
  }

 private:
  static void Raise(Moment* to, Moment moment) { *to = std::max(*to, moment); }

  std::unique_ptr<Clock> seen_, fenced_;
  ClockRef last_seen_, last_fenced_;
};

// Joins that many lanes ask for, one after the other, are made once.
class Joiner {
 public:
  ClockRef Join(const ClockRef& a, const ClockRef& b) {
    if (a == b) return a;
    for (const Entry& entry : entries_) {
      if (entry.a == a && entry.b == b) return entry.joined;
    }
    auto joined = std::make_shared<Clock>(*a);
    joined->Join(*b);
    // One that brings nothing new keeps the clock that others share.
    ClockRef result = joined->at == b->at ? b : joined->at == a->at ? a : joined;
    entries_[next_++ % entries_.size()] = {a, b, result};
    return result;
  }

 private:
  struct Entry {
    ClockRef a, b, joined;
  };
  std::array<Entry, 16> entries_;
  size_t next_ = 0;
};

}  // namespace stal::emulator
