#pragma once
/// Tests of single operations on memory of the host, for every device that works on it: the CPU's
/// paths and, where the emulator is part of the program, emulated GPUs.

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "gpu_exec/device.h"

namespace librarian::gpu_exec {

struct TestDevice {
  std::string name;
  std::function<std::unique_ptr<Device>()> make;
};
inline void PrintTo(const TestDevice& device, std::ostream* out) { *out << device.name; }

class OnTestDevice : public testing::TestWithParam<TestDevice> {
 protected:
  OnTestDevice() : device_(GetParam().make()) {}
  Device& device() { return *device_; }
  /// Waits for all that `compute` was given.
  void drain() {
    const Ticket all = device_->mark(Queue::compute);
    while (!*device_->reached(all)) {
    }
  }

 private:
  std::unique_ptr<Device> device_;
};

class PartedHeads : public OnTestDevice {};
class TurnedHeads : public OnTestDevice {};

inline std::string name_of_device(const testing::TestParamInfo<TestDevice>& device) {
  return device.param.name;
}

}  // namespace librarian::gpu_exec
