#pragma once
/// Arrays on a CUDA device, emulated or real, for tests of single operations.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "gpu_exec/cuda_device.h"
#include "tests/gpu_exec/exec_testing.h"
#include "tests/support/emulated_cuda.h"

namespace librarian::gpu_exec {

/// A device's memory, given away piece by piece.
class DeviceArea {
 public:
  DeviceArea(Device& device, std::uint64_t bytes)
      : device_(device),
        memory_(*device.allocate(bytes)),
        host_(*device.allocate_host(bytes)),
        bytes_(bytes) {}

  std::byte* take(std::uint64_t bytes) {
    std::byte* const at = memory_.get() + used_;
    used_ += (bytes + 255) / 256 * 256;
    LIB_CHECK(used_ <= bytes_);
    return at;
  }
  /// What computes from now on finds `content` there.
  std::byte* put(const Bytes& content) {
    std::byte* const at = take(content.size());
    std::byte* const from = host_.get() + (at - memory_.get());
    std::copy(content.begin(), content.end(), from);
    device_.copy_in(from, at, content.size());
    device_.wait(Queue::compute, device_.mark(Queue::upload));
    return at;
  }
  /// What is there when all work of `queue` is done.
  Bytes get(const std::byte* at, std::uint64_t bytes, Queue queue = Queue::compute) {
    std::byte* const to = host_.get() + (at - memory_.get());
    device_.wait(Queue::download, device_.mark(queue));
    device_.copy_out(at, to, bytes);
    const Ticket there = device_.mark(Queue::download);
    while (!device_.reached(there).value()) {
    }
    return {to, to + bytes};
  }
  /// Gives it all back, which the device must be done with.
  void clear() { used_ = 0; }

 private:
  Device& device_;
  DeviceMemory memory_, host_;
  std::uint64_t bytes_;
  std::uint64_t used_ = 0;
};

/// A test on the GPU of its parameter: "emulated", or "gpu" where there is one.
class OnCudaDevice : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "gpu") {
      auto device = make_cuda_device(CudaOptions{});
      if (!device) {
        GTEST_SKIP() << "no GPU to test on: " << device.error().message();
      }
      device_ = *std::move(device);
    } else {
      device_ = *make_cuda_device(make_emulated_cuda({}), std::uint64_t{1} << 30U);
    }
  }
  Device& device() { return *device_; }

 private:
  std::unique_ptr<Device> device_;
};

}  // namespace librarian::gpu_exec
