// What the loops of every family share: operands are brought, block by block, into the type and the
// unit stride that the arithmetic wants. A block fits the L1 cache, so that this costs no memory
// traffic, and n dtypes need n loops instead of one per combination; an operand that is as wanted
// already is used in place.
//
// Included once per instruction set, inside that set's namespace: no include guard, no includes.

// Elements in a block. Long ones crowd the data out of the L1 cache, short ones pay for being started:
// linf_step_ with a normalised bf16 out took, for blocks of 256, 512 and 1024, 0.75, 0.81 and 1.23 of
// the copy on 64x3x224x224 channels-last (2 threads), and 0.32, 0.27 and 0.28 ns per element on
// 16x3x224x224 (1 thread). Zen 5, AVX-512.
constexpr int64_t kBlock = 512;

// Calls run(tag) with a value of the type that the tensor holds.
template <class Run>
static inline void with_float_type(DType dtype, Run&& run) {
  switch (dtype) {
    case DType::f16:
      return run(float16{});
    case DType::bf16:
      return run(bfloat16{});
    case DType::f32:
      return run(float{});
    case DType::f64:
      return run(double{});
    case DType::u8:
      return;  // refused by the caller: not a float type
  }
}

template <class Run>
static inline void with_image_type(DType dtype, Run&& run) {
  if (dtype == DType::u8) return run(uint8_t{});
  with_float_type(dtype, run);
}

// Calls run(tag) for the type of an attack's state.
template <class Run>
static inline void with_state_type(DType dtype, Run&& run) {
  if (dtype == DType::f64) return run(double{});
  run(float{});
}

template <class T>
static inline T* elements(const Array& array, int64_t offset) {
  return static_cast<T*>(array.data) + offset;
}

// The block as T, in place where it is stored so, else converted (uint8: divided by 255) into buffer.
template <class T>
static inline const T* load(const Array& array, int64_t offset, int64_t stride, int64_t count, T* buffer) {
  const T* loaded = buffer;
  with_image_type(array.dtype, [&](auto tag) {
    using S = decltype(tag);
    const S* from = elements<S>(array, offset);
    if constexpr (std::is_same_v<S, T>) {
      if (stride == 1) {
        loaded = from;
        return;
      }
    }
    if (stride == 1)
      for (int64_t i = 0; i < count; ++i) buffer[i] = convert<T>(from[i]);
    else
      for (int64_t i = 0; i < count; ++i) buffer[i] = convert<T>(from[i * stride]);
  });
  return loaded;
}

// The block as T values of the same sign; zero and NaN have none.
template <class T>
static inline const T* load_sign(const Array& array, int64_t offset, int64_t stride, int64_t count,
                                 T* buffer) {
  const T* loaded = buffer;
  with_float_type(array.dtype, [&](auto tag) {
    using S = decltype(tag);
    const S* from = elements<S>(array, offset);
    if constexpr (std::is_same_v<S, T>) {
      if (stride == 1) {
        loaded = from;
        return;
      }
    }
    if (stride == 1)
      for (int64_t i = 0; i < count; ++i) buffer[i] = sign<T>(from[i]);
    else
      for (int64_t i = 0; i < count; ++i) buffer[i] = sign<T>(from[i * stride]);
  });
  return loaded;
}

// Rounds the block to the array's type and puts it there.
template <class T>
static inline void store(const Array& array, int64_t offset, int64_t stride, int64_t count, const T* block) {
  with_float_type(array.dtype, [&](auto tag) {
    using D = decltype(tag);
    D* to = elements<D>(array, offset);
    if (stride == 1)
      for (int64_t i = 0; i < count; ++i) to[i] = convert<D>(block[i]);
    else
      for (int64_t i = 0; i < count; ++i) to[i * stride] = convert<D>(block[i]);
  });
}

static inline bool has(const Mask& mask, int64_t sample) {
  return mask.data == nullptr || mask.data[sample * mask.stride];
}

template <class T>
static inline T value(const Parameter& parameter, int64_t sample) {
  if (parameter.data == nullptr) return static_cast<T>(parameter.value);
  return valid_size(static_cast<const T*>(parameter.data)[sample * parameter.stride]);
}

// (block - mean) / std. Where the channel changes from element to element, mean and std are laid out
// once as rows that repeat it, long enough to be read from any phase.
template <class T>
struct Normalizer {
  const Normalization& by;
  bool periodic;
  std::unique_ptr<T[]> means, stds;

  Normalizer(const Normalization& by, Channel channel)
      : by(by), periodic(by.mean != nullptr && channel == Channel::periodic) {
    if (!periodic) return;
    means.reset(new T[kBlock + by.channels]);
    stds.reset(new T[kBlock + by.channels]);
    for (int64_t i = 0; i < kBlock + by.channels; ++i) {
      means[i] = mean(i % by.channels);
      stds[i] = std(i % by.channels);
    }
  }

  T mean(int64_t channel) const { return static_cast<const T*>(by.mean)[channel * by.mean_stride]; }
  T std(int64_t channel) const { return static_cast<const T*>(by.std)[channel * by.std_stride]; }

  // std of a block's elements, or null where there is none.
  const T* stds_of(int64_t count, int64_t position, int64_t channel, T* buffer) const {
    if (by.mean == nullptr) return nullptr;
    if (periodic) return stds.get() + position % by.channels;
    const T s = std(channel);
    for (int64_t i = 0; i < count; ++i) buffer[i] = s;
    return buffer;
  }

  // position: of the block's first element in its row.
  const T* operator()(const T* __restrict block, int64_t count, int64_t position, int64_t channel,
                      T* __restrict buffer) const {
    if (by.mean == nullptr) return block;
    if (periodic) {
      const T* __restrict m = means.get() + position % by.channels;
      const T* __restrict s = stds.get() + position % by.channels;
      for (int64_t i = 0; i < count; ++i) buffer[i] = normalize(block[i], m[i], s[i]);
    } else {
      const T m = mean(channel), s = std(channel);
      for (int64_t i = 0; i < count; ++i) buffer[i] = normalize(block[i], m, s);
    }
    return buffer;
  }
};

// Calls visit(begin, count) for the blocks of a chunk.
template <class Visit>
static inline void for_each_block(const Chunk& chunk, Visit&& visit) {
  for (int64_t begin = 0; begin < chunk.count; begin += kBlock)
    visit(begin, std::min(kBlock, chunk.count - begin));
}

// Calls run with values of two types: of the state, and in which a gradient is scaled.
template <class Run>
static inline void with_types(const Array& state, const Array& grad, Run&& run) {
  if (state.dtype == DType::f64) return run(double{}, double{});
  if (grad.data != nullptr && grad.dtype == DType::f64) return run(float{}, double{});
  run(float{}, float{});
}

// How a gradient is loaded: as it is, or its signs alone.
enum class Grad { values, signs };

// Walks over the operands of a step. T: of the state; C: in which gradients are looked at.
template <class T, class C, Grad kGrad>
class StepBlocks {
 public:
  struct Block {
    T* __restrict adv;
    const T* __restrict clean;
    const C* __restrict grad;
    T* __restrict previous;
    int64_t count, sample, position, channel;  // position: of the first element in its row
  };

  explicit StepBlocks(const Step& op)
      : op_(op),
        plan_(op.plan),
        operands_(op.operands().count),
        normalizer_(op.normalization, plan_.channel) {}

  const Normalizer<T>& normalizer() const { return normalizer_; }

  // Calls visit(block) for what lies in the chunks.
  template <class Visit>
  void read(int64_t sample, int64_t first, int64_t last, Visit&& visit) {
    walk(sample, first, last,
         [&](const Chunk& chunk, int64_t begin, int64_t count) { visit(load_block(chunk, begin, count)); });
  }

  // Keeps what visit(block) does to adv and previous, where the sample is active, and writes out.
  template <class Visit>
  void write(int64_t sample, int64_t first, int64_t last, Visit&& visit) {
    walk(sample, first, last, [&](const Chunk& chunk, int64_t begin, int64_t count) {
      const bool active = has(op_.active, chunk.sample);
      if (!active && !op_.has_out()) return;
      const T* adv;
      if (active) {
        const Block block = load_block(chunk, begin, count);
        visit(block);
        keep(op_.adv, Step::kAdv, block.adv, adv_, chunk, begin, count);
        if (op_.has_previous())
          keep(op_.previous, Step::kPrevious, block.previous, previous_, chunk, begin, count);
        adv = block.adv;
      } else {
        adv = load_of(op_.adv, Step::kAdv, chunk, begin, count, adv_);
      }
      if (!op_.has_out()) return;
      const int at = op_.out_at();
      const T* input = normalizer_(adv, count, chunk.begin + begin, chunk.channel, input_);
      store(op_.out, offset(at, chunk, begin), plan_.row_stride[at], count, input);
    });
  }

 private:
  template <class Visit>
  void walk(int64_t sample, int64_t first, int64_t last, Visit&& visit) {
    const auto blocks = [&](const Chunk& chunk) {
      for_each_block(chunk, [&](int64_t begin, int64_t count) { visit(chunk, begin, count); });
    };
    for_each_chunk(plan_, operands_, first, last, blocks, sample);
  }

  int64_t offset(int operand, const Chunk& chunk, int64_t begin) const {
    return chunk.offset[operand] + begin * plan_.row_stride[operand];
  }

  template <class S>
  const S* load_of(const Array& array, int operand, const Chunk& chunk, int64_t begin, int64_t count,
                   S* buffer) const {
    return load(array, offset(operand, chunk, begin), plan_.row_stride[operand], count, buffer);
  }

  Block load_block(const Chunk& chunk, int64_t begin, int64_t count) {
    Block block = {nullptr,      nullptr, nullptr, nullptr, count, chunk.sample, chunk.begin + begin,
                   chunk.channel};
    // Where they lie as wanted, the block is the memory itself.
    block.adv = const_cast<T*>(load_of(op_.adv, Step::kAdv, chunk, begin, count, adv_));
    block.clean = load_of(op_.clean, Step::kClean, chunk, begin, count, clean_);
    if (op_.has_grad()) {
      if constexpr (kGrad == Grad::signs)
        block.grad = load_sign(op_.grad, offset(Step::kGrad, chunk, begin), plan_.row_stride[Step::kGrad],
                               count, grad_);
      else
        block.grad = load_of(op_.grad, Step::kGrad, chunk, begin, count, grad_);
    }
    if (op_.has_previous())
      block.previous = const_cast<T*>(load_of(op_.previous, Step::kPrevious, chunk, begin, count, previous_));
    return block;
  }

  void keep(const Array& array, int operand, const T* block, const T* buffer, const Chunk& chunk,
            int64_t begin, int64_t count) const {
    if (block == buffer) store(array, offset(operand, chunk, begin), plan_.row_stride[operand], count, block);
  }

  const Step& op_;
  const Plan& plan_;
  const int operands_;
  const Normalizer<T> normalizer_;
  alignas(64) T adv_[kBlock], clean_[kBlock], previous_[kBlock], input_[kBlock];
  alignas(64) C grad_[kBlock];
};
