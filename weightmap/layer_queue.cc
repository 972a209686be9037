#include "weightmap/layer_queue.h"

#include <algorithm>
#include <utility>

namespace librarian::weightmap {

LayerQueue::LayerQueue(const Checkpoint& checkpoint, std::vector<std::size_t> object_of_file,
                       std::int32_t last_layer)
    : checkpoint_(checkpoint),
      object_of_file_(std::move(object_of_file)),
      last_layer_(last_layer) {}

bool LayerQueue::Layer::needs(std::size_t object) const {
  return std::find(objects.begin(), objects.end(), object) != objects.end();
}

LayerQueue::Layer LayerQueue::make_layer(std::int32_t layer) {
  const LayerPlan& plan = checkpoint_.layer(layer);
  Layer made{layer, next_number_++, plan.bytes, {}};
  for (const WeightTensor& tensor : plan.tensors) {
    const std::size_t object = object_of_file_[tensor.file];
    if (!made.needs(object)) {
      made.objects.push_back(object);
    }
  }
  return made;
}

void LayerQueue::announce(std::int32_t layer, std::uint32_t readings) {
  const auto expected = std::find_if(layers_.begin(), layers_.end(),
                                     [](const Layer& queued) { return !queued.announced; });
  if (expected != layers_.end() && expected->layer == layer) {
    expected->announced = true;
    expected->bytes *= readings;
    return;
  }
  layers_.erase(expected, layers_.end());
  layers_.push_back(make_layer(layer));
  layers_.back().announced = true;
  layers_.back().bytes *= readings;
  for (std::int32_t later = layer + 1; later <= last_layer_; ++later) {
    layers_.push_back(make_layer(later));
  }
}

std::uint64_t LayerQueue::asked_for(std::uint64_t bytes) {
  const auto asking = std::find_if(layers_.begin(), layers_.end(), [](const Layer& layer) {
    return layer.announced && layer.asked_bytes < layer.bytes;
  });
  LIB_CHECK(asking != layers_.end());
  asking->asked_bytes += bytes;
  return asking->number;
}

void LayerQueue::pass_over(std::uint64_t bytes) {
  arrived(asked_for(bytes), bytes, Verification::sha256);
}

void LayerQueue::arrived(std::uint64_t number, std::uint64_t bytes, Verification verification) {
  for (Layer& layer : layers_) {
    if (layer.number == number) {
      layer.arrived_bytes += bytes;
      layer.verification = std::min(layer.verification, verification);
    }
  }
}

std::vector<std::size_t> LayerQueue::durable(std::int32_t layer) {
  LIB_CHECK(!layers_.empty() && layers_.front().layer == layer && layers_.front().announced);
  std::vector<std::size_t> objects = std::move(layers_.front().objects);
  layers_.pop_front();
  std::erase_if(objects, [&](std::size_t object) {
    return std::any_of(layers_.begin(), layers_.end(),
                       [&](const Layer& later) { return later.needs(object); });
  });
  return objects;
}

std::vector<std::size_t> LayerQueue::wanted() const {
  std::vector<std::size_t> objects;
  for (const Layer& layer : layers_) {
    for (const std::size_t object : layer.objects) {
      if (!layer.is_read() && std::find(objects.begin(), objects.end(), object) == objects.end()) {
        objects.push_back(object);
      }
    }
  }
  return objects;
}

std::uint64_t LayerQueue::distance(std::size_t object, bool another_pass) const {
  bool unsaved = false;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (layers_[i].needs(object)) {
      if (!layers_[i].is_read()) {
        return 2 * i;
      }
      unsaved = true;
    }
  }
  std::uint64_t next = kNever;
  for (std::int32_t layer = last_layer_; layer >= kEmbeddingLayer && another_pass; --layer) {
    for (const WeightTensor& tensor : checkpoint_.layer(layer).tensors) {
      if (object_of_file_[tensor.file] == object) {
        next = 2 * (layers_.size() + static_cast<std::uint64_t>(layer + 1)) + 1;
      }
    }
  }
  // Reading it again because of a crash is less likely than for the next pass.
  return unsaved ? next - 1 : next;
}

bool LayerQueue::is_waited_for(std::size_t object) const {
  return std::any_of(layers_.begin(), layers_.end(), [&](const Layer& layer) {
    return layer.asked_bytes > layer.arrived_bytes && layer.needs(object);
  });
}

Verification LayerQueue::verification(std::int32_t layer) const {
  const auto found = std::find_if(layers_.begin(), layers_.end(), [&](const Layer& queued) {
    return queued.announced && queued.layer == layer;
  });
  LIB_CHECK(found != layers_.end());
  return found->verification;
}

}  // namespace librarian::weightmap
