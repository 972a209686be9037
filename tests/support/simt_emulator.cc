#include "tests/support/simt_emulator.h"

#include <boost/context/detail/fcontext.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <vector>

#include "gpu_exec/cuda_simt.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace librarian::gpu_exec::simt {
namespace {

namespace context = boost::context;

constexpr std::size_t kStackBytes = 64 << 10;
constexpr std::size_t kSharedAlignment = 128;
constexpr unsigned kBlockThreadsMax = 1024;
constexpr std::uint32_t kAllLanes = 0xFFFFFFFFU;

/// Where lanes of a warp meet.
enum class Meeting : std::uint8_t {
  sync_warp,
  shuffle_xor,
  load_matrices,
  load_matrices_transposed,
  multiply_bf16,
  multiply_f16
};
const char* meeting_name(Meeting meeting) {
  switch (meeting) {
    case Meeting::sync_warp:
      return "sync_warp";
    case Meeting::shuffle_xor:
      return "shuffle_xor";
    case Meeting::load_matrices:
      return "load_matrices";
    case Meeting::load_matrices_transposed:
      return "load_matrices_transposed";
    case Meeting::multiply_bf16:
      return "multiply_accumulate of bf16";
    case Meeting::multiply_f16:
      return "multiply_accumulate of f16";
  }
  return "?";
}

/// A stack to run on: that of a CUDA thread, or of whoever called run_blocks().
struct Fiber {
  context::detail::fcontext_t context = nullptr;
  const void* stack_bottom = nullptr;
  std::size_t stack_bytes = 0;
};

/// A copy that was asked for and has not arrived.
struct Copy {
  std::byte* to;
  const std::byte* from;  // Null: zeros.
};

/// What a lane brings to a meeting. The pointers are to the stacks of lanes that wait.
struct Deposit {
  float* value;  // shuffle_xor; replaced by the result.
  unsigned mask;
  std::uint32_t* matrices;  // load_matrices*: [4].
  const void* shared_row;
  float* c;                // multiply_accumulate: [4].
  const std::uint32_t* a;  // [4]
  std::uint32_t b[2];
};

/// A CUDA thread. Lives from block to block: its stack is the costly part.
struct Thread {
  Fiber fiber;
  Deposit deposit{};
  std::vector<Copy> copies;              // The group that is still open.
  std::deque<std::vector<Copy>> groups;  // Oldest first.
};

struct Warp {
  std::uint32_t ready = 0;    // Lanes that may run on.
  std::uint32_t arrived = 0;  // Lanes that wait in a warp-wide function.
  Meeting meeting = Meeting::sync_warp;
};

struct SharedFree {
  void operator()(std::byte* bytes) const {
    ::operator delete (bytes, std::align_val_t{kSharedAlignment});
  }
};

/// The block under way, and the threads that it and its successors use.
class Emulator {
 public:
  Emulator() = default;
  Emulator(const Emulator&) = delete;
  Emulator& operator=(const Emulator&) = delete;
  ~Emulator() {
    for (context::stack_context& stack : stacks_) {
      allocator_.deallocate(stack);
    }
  }

  void run(unsigned grid_x, unsigned grid_y, unsigned threads, std::size_t shared_bytes,
           const std::function<void(std::byte*)>& body) {
    body_ = &body;
    grid_x_ = grid_x;
    threads_ = threads;
    check(threads % kWarpThreads == 0 && threads > 0 && threads <= kBlockThreadsMax,
          "a block that is not whole warps");
    // Of exactly the asked size, so that a sanitizer sees anything beyond.
    shared_bytes_ = shared_bytes;
    shared_.reset(
        static_cast<std::byte*>(::operator new (shared_bytes, std::align_val_t{kSharedAlignment})));
    while (stacks_.size() < threads) {
      add_thread();
    }
    for (block_y_ = 0; block_y_ < grid_y; ++block_y_) {
      for (block_x_ = 0; block_x_ < grid_x; ++block_x_) {
        run_block();
      }
    }
    shared_.reset();
  }

  unsigned thread() const { return running_; }
  unsigned threads() const { return threads_; }
  unsigned block_x() const { return block_x_; }
  unsigned block_y() const { return block_y_; }
  unsigned grid_x() const { return grid_x_; }
  Thread& running() { return *all_[running_]; }

  /// Returns once all lanes of the warp are here; the last to come calls
  /// compute(function from lane to Deposit&) for all of them.
  template <typename Compute>
  void meet(Meeting meeting, const Compute& compute) {
    Warp& warp = warps_[running_ / kWarpThreads];
    check(warp.arrived == 0 || warp.meeting == meeting, meeting_name(meeting),
          " reached while other lanes of the warp wait in ", meeting_name(warp.meeting));
    warp.meeting = meeting;
    warp.arrived |= 1U << (running_ % kWarpThreads);
    if (warp.arrived != kAllLanes) {
      leave();
      return;
    }
    std::unique_ptr<Thread>* lanes = &all_[running_ - running_ % kWarpThreads];
    compute([lanes](unsigned lane) -> Deposit& { return lanes[lane]->deposit; });
    warp.arrived = 0;
    warp.ready = kAllLanes & ~(1U << (running_ % kWarpThreads));
  }

  void meet_block() {
    ++at_barrier_;
    if (at_barrier_ < threads_) {
      leave();
      return;
    }
    at_barrier_ = 0;
    for (unsigned warp = 0; warp < threads_ / kWarpThreads; ++warp) {
      warps_[warp].ready = kAllLanes;
    }
    warps_[running_ / kWarpThreads].ready &= ~(1U << (running_ % kWarpThreads));
  }

  /// An address in shared memory, `bytes` long and aligned to them.
  void check_shared(const void* address, std::size_t bytes, const char* function) {
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    const auto begin = reinterpret_cast<std::uintptr_t>(shared_.get());
    check(at >= begin && at + bytes <= begin + shared_bytes_, function,
          " with an address outside of the block's shared memory");
    check(at % bytes == 0, function, " with a misaligned address in shared memory");
  }

  void check(bool holds, const char* part, const char* part2 = "", const char* part3 = "") {
    if (!holds) {
      std::fprintf(stderr, "simt emulator: block (%u, %u), thread %u: %s%s%s\n", block_x_, block_y_,
                   running_, part, part2, part3);
      std::abort();
    }
  }

 private:
  void add_thread() {
    const context::stack_context stack = allocator_.allocate();
    stacks_.push_back(stack);
    all_.push_back(std::make_unique<Thread>());
    Fiber& fiber = all_.back()->fiber;
    // Tops of stacks a page apart would share a few sets of the cache.
    const std::size_t shift = all_.size() % 32 * 128;
    fiber.context = context::detail::make_fcontext(static_cast<std::byte*>(stack.sp) - shift,
                                                   stack.size - shift, run_thread);
    fiber.stack_bottom = static_cast<const std::byte*>(stack.sp) - stack.size;
    fiber.stack_bytes = stack.size;
  }

  void run_block() {
    std::memset(shared_.get(), 0xFF, shared_bytes_);
    backwards_ = !backwards_;
    at_barrier_ = 0;
    for (unsigned warp = 0; warp < threads_ / kWarpThreads; ++warp) {
      warps_[warp] = {kAllLanes, 0, Meeting::sync_warp};
    }
    running_ = backwards_ ? threads_ - 1 : 0;
    take_next();
    jump(caller_, all_[running_]->fiber);
  }

  /// What every fiber runs: its part of one block after the other.
  static void run_thread(context::detail::transfer_t from);

  void run_bodies() {
    for (;;) {
      (*body_)(shared_.get());
      Thread& thread = running();
      for (const std::vector<Copy>& group : thread.groups) {
        check(group.empty(), "ended before its copies were waited for");
      }
      check(thread.copies.empty(), "ended before its copies were waited for");
      thread.groups.clear();
      leave();
    }
  }

  /// Lets others run until this thread's turn comes again.
  void leave() {
    Fiber& from = running().fiber;
    if (take_next()) {
      jump(from, all_[running_]->fiber);
      return;
    }
    check(at_barrier_ == 0, "threads wait at sync_threads for others that never come");
    for (unsigned warp = 0; warp < threads_ / kWarpThreads; ++warp) {
      check(warps_[warp].arrived == 0, "lanes wait in ", meeting_name(warps_[warp].meeting),
            " for others that never come");
    }
    jump(from, caller_);  // All have ended.
  }

  /// Makes another thread the running one, of the same warp if any is ready there.
  bool take_next() {
    const unsigned warps = threads_ / kWarpThreads;
    unsigned warp = running_ / kWarpThreads;
    for (unsigned i = 0; i < warps && warps_[warp].ready == 0; ++i) {
      warp = backwards_ ? (warp == 0 ? warps : warp) - 1 : (warp + 1 == warps ? 0 : warp + 1);
    }
    std::uint32_t& ready = warps_[warp].ready;
    if (ready == 0) {
      return false;
    }
    const auto lane =
        static_cast<unsigned>(backwards_ ? 31 - __builtin_clz(ready) : __builtin_ctz(ready));
    ready &= ~(1U << lane);
    running_ = warp * kWarpThreads + lane;
    return true;
  }

  static void jump(Fiber& from, const Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, to.stack_bottom, to.stack_bytes);
#endif
    const context::detail::transfer_t back = context::detail::jump_fcontext(to.context, &from);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
    static_cast<Fiber*>(back.data)->context = back.fctx;
  }

  context::protected_fixedsize_stack allocator_{kStackBytes};
  std::vector<context::stack_context> stacks_;
  std::vector<std::unique_ptr<Thread>> all_;
  Fiber caller_;
  const std::function<void(std::byte*)>* body_ = nullptr;
  unsigned grid_x_ = 0, threads_ = 0, block_x_ = 0, block_y_ = 0;
  std::unique_ptr<std::byte, SharedFree> shared_;
  std::size_t shared_bytes_ = 0;
  bool backwards_ = true;
  Warp warps_[kBlockThreadsMax / kWarpThreads];
  unsigned running_ = 0, at_barrier_ = 0;
};

Emulator& emulator() {
  thread_local Emulator mine;
  return mine;
}

void Emulator::run_thread(context::detail::transfer_t from) {
  auto* before = static_cast<Fiber*>(from.data);
  before->context = from.fctx;
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  before->stack_bottom = bottom;
  before->stack_bytes = bytes;
#endif
  emulator().run_bodies();
}

/// Two 16-bit elements of a register.
std::uint16_t low_of(std::uint32_t pair) { return static_cast<std::uint16_t>(pair & 0xFFFFU); }
std::uint16_t high_of(std::uint32_t pair) { return static_cast<std::uint16_t>(pair >> 16U); }

template <typename Lanes>
void load_warp(const Lanes& lanes, bool transposed) {
  std::uint16_t matrix[4][8][8];
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    std::memcpy(matrix[lane / 8][lane % 8], lanes(lane).shared_row, 16);
  }
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    const unsigned g = lane / 4;
    const unsigned t = lane % 4 * 2;
    for (unsigned m = 0; m < 4; ++m) {
      const std::uint32_t low = transposed ? matrix[m][t][g] : matrix[m][g][t];
      const std::uint32_t high = transposed ? matrix[m][t + 1][g] : matrix[m][g][t + 1];
      lanes(lane).matrices[m] = low | high << 16U;
    }
  }
}

template <MmaType type>
float element(std::uint16_t bits) {
  return type == MmaType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

/// Products of 16-bit numbers are exact in f32; their sum here goes from c and the first to the
/// last with one rounding each. In what order and how hardware rounds is not specified.
template <MmaType type, typename Lanes>
void multiply_warp(const Lanes& lanes) {
  using Row = float __attribute__((vector_size(32)));
  float a[16][16];
  Row b[16];
  Row c[16];
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    const Deposit& deposit = lanes(lane);
    const unsigned g = lane / 4;
    const unsigned t = lane % 4 * 2;
    for (unsigned i = 0; i < 4; ++i) {
      float* to = &a[g + i % 2 * 8][t + i / 2 * 8];
      to[0] = element<type>(low_of(deposit.a[i]));
      to[1] = element<type>(high_of(deposit.a[i]));
      c[g + i / 2 * 8][t + i % 2] = deposit.c[i];
    }
    for (unsigned i = 0; i < 2; ++i) {
      b[t + i * 8][g] = element<type>(low_of(deposit.b[i]));
      b[t + 1 + i * 8][g] = element<type>(high_of(deposit.b[i]));
    }
  }
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned k = 0; k < 16; ++k) {
      c[row] += a[row][k] * b[k];
    }
  }
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      lanes(lane).c[i] = c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
  }
}

void load(std::uint32_t (&r)[4], const void* shared_row, Meeting meeting) {
  Emulator& all = emulator();
  all.check_shared(shared_row, 16, meeting_name(meeting));
  all.running().deposit.matrices = r;
  all.running().deposit.shared_row = shared_row;
  all.meet(meeting, [meeting](const auto& lanes) {
    load_warp(lanes, meeting == Meeting::load_matrices_transposed);
  });
}

}  // namespace

unsigned thread_index() { return emulator().thread(); }
unsigned block_threads() { return emulator().threads(); }
unsigned block_index_x() { return emulator().block_x(); }
unsigned block_index_y() { return emulator().block_y(); }
unsigned grid_blocks_x() { return emulator().grid_x(); }

void sync_threads() { emulator().meet_block(); }
void sync_warp() {
  emulator().meet(Meeting::sync_warp, [](const auto& /*lanes*/) {});
}

float shuffle_xor(float value, unsigned mask) {
  Emulator& all = emulator();
  all.check(mask < kWarpThreads, "shuffle_xor with a lane beyond the warp");
  all.running().deposit.value = &value;
  all.running().deposit.mask = mask;
  all.meet(Meeting::shuffle_xor, [](const auto& lanes) {
    float values[kWarpThreads];
    for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
      values[lane] = *lanes(lane).value;
    }
    for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
      *lanes(lane).value = values[lane ^ lanes(lane).mask];
    }
  });
  return value;
}

float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

void load_matrices(std::uint32_t (&r)[4], const void* shared_row) {
  load(r, shared_row, Meeting::load_matrices);
}
void load_matrices_transposed(std::uint32_t (&r)[4], const void* shared_row) {
  load(r, shared_row, Meeting::load_matrices_transposed);
}

template <MmaType type>
void multiply_accumulate(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
  Emulator& all = emulator();
  Deposit& deposit = all.running().deposit;
  deposit.c = c;
  deposit.a = a;
  deposit.b[0] = b0;
  deposit.b[1] = b1;
  all.meet(type == MmaType::bf16 ? Meeting::multiply_bf16 : Meeting::multiply_f16,
           [](const auto& lanes) { multiply_warp<type>(lanes); });
}
template void multiply_accumulate<MmaType::bf16>(float (&)[4], const std::uint32_t (&)[4],
                                                 std::uint32_t, std::uint32_t);
template void multiply_accumulate<MmaType::f16>(float (&)[4], const std::uint32_t (&)[4],
                                                std::uint32_t, std::uint32_t);

void copy_async_16(void* shared, const void* global, bool valid) {
  Emulator& all = emulator();
  all.check_shared(shared, 16, "copy_async_16");
  all.check(reinterpret_cast<std::uintptr_t>(global) % 16 == 0 || !valid,
            "copy_async_16 with a misaligned address in device memory");
  all.running().copies.push_back(
      {static_cast<std::byte*>(shared), valid ? static_cast<const std::byte*>(global) : nullptr});
}
void copies_commit() {
  Thread& thread = emulator().running();
  thread.groups.push_back(std::move(thread.copies));
  thread.copies.clear();
}
void copies_wait_for(int groups) {
  Thread& thread = emulator().running();
  while (thread.groups.size() > static_cast<std::size_t>(groups)) {
    for (const Copy& copy : thread.groups.front()) {
      copy.from == nullptr ? std::memset(copy.to, 0, 16) : std::memcpy(copy.to, copy.from, 16);
    }
    thread.groups.pop_front();
  }
}

void run_blocks(unsigned grid_x, unsigned grid_y, unsigned block_threads, std::size_t shared_bytes,
                const std::function<void(std::byte* shared)>& body) {
  emulator().run(grid_x, grid_y, block_threads, shared_bytes, body);
}

}  // namespace librarian::gpu_exec::simt
