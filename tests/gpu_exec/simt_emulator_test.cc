// The stand-in for a GPU: what it computes is what the PTX ISA says, and it finds the mistakes that
// a real one would punish with wrong numbers.
#include "tests/support/simt_emulator.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "gpu_exec/cuda_simt.h"
#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec::simt {
namespace {

// Goal: every thread of every block runs once, and knows which it is.
TEST(SimtEmulator, RunsEveryThreadOfEveryBlock) {
  std::vector<int> runs(3UL * 2 * 64);
  run_blocks(3, 2, 64, 0, [&](std::byte*) {
    EXPECT_EQ(block_threads(), 64U);
    EXPECT_EQ(grid_blocks_x(), 3U);
    ++runs[(block_index_y() * 3 + block_index_x()) * 64 + thread_index()];
  });
  EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
}

// Goal: after a barrier every thread sees what the others wrote before it, and without one not.
// Method: each thread reads the number of its mirror image, in blocks that run in both orders.
TEST(SimtEmulator, SyncsTheThreadsOfABlock) {
  for (const bool barrier : {true, false}) {
    int wrong = 0;
    run_blocks(2, 1, 96, 96 * sizeof(float), [&](std::byte* shared) {
      auto* numbers = reinterpret_cast<float*>(shared);
      for (int round = 0; round < 3; ++round) {
        const auto mine = static_cast<float>(thread_index()) + 1000.0F * static_cast<float>(round);
        numbers[thread_index()] = mine;
        if (barrier) {
          sync_threads();
        }
        const float sum = numbers[95 - thread_index()] + mine;
        wrong += sum == 95.0F + 2000.0F * static_cast<float>(round) ? 0 : 1;
        if (barrier) {
          sync_threads();
        }
      }
    });
    EXPECT_EQ(wrong == 0, barrier);
  }
}

// Goal: nothing of a block reaches the next one through shared memory.
TEST(SimtEmulator, BeginsEachBlockWithNan) {
  run_blocks(2, 2, 32, 64, [](std::byte* shared) {
    if (thread_index() == 0) {
      const std::vector<std::byte> begin(shared, shared + 64);
      EXPECT_EQ(begin, std::vector<std::byte>(64, std::byte{0xFF}));
      std::memset(shared, 0, 64);
    }
  });
}

TEST(SimtEmulator, ShufflesWithinTheWarp) {
  run_blocks(1, 1, 64, 0, [](std::byte*) {
    for (const unsigned mask : {1U, 2U, 5U, 16U, 31U}) {
      const float got = shuffle_xor(static_cast<float>(thread_index()), mask);
      EXPECT_EQ(got, static_cast<float>(thread_index() ^ mask));
    }
  });
}

// Goal: registers get the elements that the PTX ISA says, of matrices anywhere in shared memory.
// Method: element (row, column) of matrix m is the number m * 64 + row * 8 + column.
TEST(SimtEmulator, LoadsMatricesAsTheyLieAndTransposed) {
  constexpr std::size_t kBytes = 4UL * 8 * 48;
  run_blocks(1, 1, 64, kBytes, [](std::byte* shared) {
    const unsigned lane = thread_index() % 32;
    // Rows 48 bytes apart, and the last matrix first.
    const auto row_of = [&](unsigned m, unsigned row) {
      return shared + static_cast<std::size_t>(((3 - m) * 8 + row) * 48);
    };
    if (thread_index() < 32) {
      for (unsigned i = 0; i < 8; ++i) {
        const auto number = static_cast<std::uint16_t>(lane * 8 + i);
        std::memcpy(row_of(lane / 8, lane % 8) + i * 2UL, &number, 2);
      }
    }
    sync_threads();
    std::uint32_t r[4];
    std::uint32_t turned[4];
    load_matrices(r, row_of(lane / 8, lane % 8));
    load_matrices_transposed(turned, row_of(lane / 8, lane % 8));
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned row = lane / 4;
      const unsigned column = lane % 4 * 2;
      const auto number = [m](unsigned i, unsigned j) { return m * 64 + i * 8 + j; };
      EXPECT_EQ(r[m], number(row, column) | number(row, column + 1) << 16U);
      EXPECT_EQ(turned[m], number(column, row) | number(column + 1, row) << 16U);
    }
  });
}

template <MmaType type>
void check_product() {
  constexpr DType kType = type == MmaType::bf16 ? DType::bf16 : DType::f16;
  // Small integers and quarters: every sum is exact, so any order gives the same.
  TestRandom random(5);
  constexpr std::size_t kSquare = 16UL * 16;
  std::vector<float> a(kSquare);
  std::vector<float> b(kSquare / 2);
  std::vector<float> c(kSquare / 2);
  for (auto* values : {&a, &b, &c}) {
    for (float& value : *values) {
      value = static_cast<float>(static_cast<int>(random.next() % 64) - 32) / 4.0F;
    }
  }
  std::vector<float> out(kSquare / 2);
  run_blocks(1, 1, 32, kSquare * 3, [&](std::byte* shared) {
    const unsigned lane = thread_index();
    if (lane == 0) {
      const Bytes a16 = to_bytes(a, kType);
      const Bytes b16 = to_bytes(b, kType);
      std::memcpy(shared, a16.data(), a16.size());
      std::memcpy(shared + a16.size(), b16.data(), b16.size());
    }
    sync_warp();
    // A as it lies, 8 x 8 matrices down the columns first; B [8, 16] is its own transpose's rows.
    std::uint32_t left[4];
    load_matrices(left, shared + (lane % 16 * 16 + lane / 16 * 8) * 2UL);
    std::uint32_t right[4];
    load_matrices(right, shared + 512 + (lane % 8 * 16 + lane / 8 % 2 * 8) * 2UL);
    const unsigned at = lane / 4 * 8 + lane % 4 * 2;
    float sum[4] = {c[at], c[at + 1], c[at + 64], c[at + 65]};
    multiply_accumulate<type>(sum, left, right[0], right[1]);
    out[at] = sum[0];
    out[at + 1] = sum[1];
    out[at + 64] = sum[2];
    out[at + 65] = sum[3];
  });
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < 8; ++j) {
      float expected = c[i * 8 + j];
      for (std::size_t k = 0; k < 16; ++k) {
        expected += a[i * 16 + k] * b[j * 16 + k];
      }
      EXPECT_EQ(out[i * 8 + j], expected) << i << ", " << j;
    }
  }
}

// Goal: a product of tensor cores is that of the matrices, with fragments as ldmatrix leaves them.
// Method: a plain product, in numbers that leave nothing to round.
TEST(SimtEmulator, MultipliesMatrices) {
  check_product<MmaType::bf16>();
  check_product<MmaType::f16>();
}

// Goal: a kernel that does not wait for its copies reads what was there before.
// Method: two groups; each arrives with the wait that names it, and not before.
TEST(SimtEmulator, HoldsCopiesBackUntilTheyAreWaitedFor) {
  alignas(16) const float from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  run_blocks(1, 1, 32, 48, [&](std::byte* shared) {
    if (thread_index() != 7) {
      return;
    }
    const auto first_of = [&](unsigned i) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, shared + i * 16UL, 4);
      return bits;
    };
    copy_async_16(shared, from, true);
    copies_commit();
    copy_async_16(shared + 16, from + 4, true);
    copy_async_16(shared + 32, nullptr, false);
    copies_commit();
    EXPECT_EQ(first_of(0), 0xFFFFFFFFU);
    copies_wait<1>();
    EXPECT_EQ(first_of(0), bits_of(1.0F));
    EXPECT_EQ(first_of(1), 0xFFFFFFFFU);
    EXPECT_EQ(first_of(2), 0xFFFFFFFFU);
    copies_wait<0>();
    EXPECT_EQ(first_of(1), bits_of(5.0F));
    EXPECT_EQ(first_of(2), 0U);
  });
}

// Goal: what has no meaning on a GPU does not pass unseen.
// Method: each mistake ends the program with a sentence about it.
TEST(SimtEmulatorDeathTest, FindsMistakes) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  alignas(16) static const std::byte from[32] = {};
  EXPECT_DEATH(run_blocks(1, 1, 33, 0, [](std::byte*) {}), "not whole warps");
  EXPECT_DEATH(run_blocks(1, 1, 64, 0,
                          [](std::byte*) {
                            if (thread_index() != 3) {
                              sync_threads();
                            }
                          }),
               "wait at sync_threads for others that never come");
  EXPECT_DEATH(run_blocks(1, 1, 32, 0,
                          [](std::byte*) {
                            if (thread_index() != 3) {
                              shuffle_xor(0, 1);
                            }
                          }),
               "wait in shuffle_xor for others that never come");
  EXPECT_DEATH(run_blocks(1, 1, 32, 0,
                          [](std::byte*) {
                            if (thread_index() < 4) {
                              sync_warp();
                            }
                            shuffle_xor(0, 1);
                          }),
               "shuffle_xor reached while other lanes of the warp wait in sync_warp");
  EXPECT_DEATH(run_blocks(1, 1, 32, 64, [](std::byte* s) { copy_async_16(s + 8, from, true); }),
               "copy_async_16 with a misaligned address in shared memory");
  EXPECT_DEATH(run_blocks(1, 1, 32, 64, [](std::byte* s) { copy_async_16(s, from + 8, true); }),
               "copy_async_16 with a misaligned address in device memory");
  EXPECT_DEATH(run_blocks(1, 1, 32, 64, [](std::byte* s) { copy_async_16(s + 64, from, true); }),
               "copy_async_16 with an address outside");
  EXPECT_DEATH(run_blocks(1, 1, 32, 64, [](std::byte* s) { copy_async_16(s, from, true); }),
               "ended before its copies were waited for");
}

}  // namespace
}  // namespace librarian::gpu_exec::simt
