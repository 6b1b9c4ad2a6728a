// What the loops of every family share: operands are converted, block by block, to the type and the unit
// stride that the arithmetic needs. A block fits into the L1 cache, so that this costs no memory traffic, and
// n dtypes need n loops instead of one per combination. An operand that needs no conversion is used in place.
//
// Included once per instruction set, inside that set's namespace: no include guard, no includes.

// Elements in a block. Long ones crowd the data out of the L1 cache, short ones pay for being started:
// linf_step_ with a normalised bf16 out took, for blocks of 256, 512 and 1024, 0.75, 0.81 and 1.23 of
// the copy on 64x3x224x224 channels-last (2 threads), and 0.32, 0.27 and 0.28 ns per element on
// 16x3x224x224 (1 thread). Zen 5, AVX-512.
constexpr int64_t kBlock = 512;

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

// Whether the elements need no conversion.
template <class T>
static inline bool in_place(const Array& array, int64_t stride) {
  return stride == 1 && array.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
}

// The block as T, in place where it is stored so, else converted (uint8: divided by 255) into buffer.
template <class T>
static inline const T* load(const Array& array, int64_t offset, int64_t stride, int64_t count, T* buffer) {
  if (in_place<T>(array, stride)) return elements<T>(array, offset);
  load_converted(array, offset, stride, count, buffer);
  return buffer;
}

// The block as T values of the same sign; zero and NaN have none.
template <class T>
static inline const T* load_sign(const Array& array, int64_t offset, int64_t stride, int64_t count,
                                 T* buffer) {
  if (in_place<T>(array, stride)) return elements<T>(array, offset);
  load_signs(array, offset, stride, count, buffer);
  return buffer;
}

// `count` elements of a chunk of a plan, from its element `begin` on.
struct Block {
  const Plan& plan;
  const Chunk& chunk;
  int64_t begin, count;

  int64_t stride(int operand) const { return plan.row_stride[operand]; }
  int64_t offset(int operand) const { return chunk.offset[operand] + begin * stride(operand); }
  int64_t position() const { return chunk.begin + begin; }  // of the first element in its row
};

// Calls visit(block) for the blocks of the chunks [first, last), as for_each_chunk does for the chunks.
template <class Visit>
static inline void for_each_block(const Plan& plan, int operands, int64_t first, int64_t last, Visit&& visit,
                                  int64_t sample = 0) {
  const auto blocks = [&](const Chunk& chunk) {
    for (int64_t begin = 0; begin < chunk.count; begin += kBlock)
      visit(Block{plan, chunk, begin, std::min(kBlock, chunk.count - begin)});
  };
  for_each_chunk(plan, operands, first, last, blocks, sample);
}

// operand: where the array stands in the plan.
template <class T>
static ROLI_FN const T* load(const Array& array, int operand, const Block& block, T* buffer) {
  return load(array, block.offset(operand), block.stride(operand), block.count, buffer);
}

template <class T>
static ROLI_FN void store(const Array& array, int operand, const Block& block, const T* values) {
  store_values(array, block.offset(operand), block.stride(operand), block.count, values);
}

// Values that may be changed, in place or in buffer; store_changed puts back what is in buffer.
template <class T>
static ROLI_FN T* load_to_change(const Array& array, int operand, const Block& block, T* buffer) {
  return const_cast<T*>(load(array, operand, block, buffer));
}

template <class T>
static ROLI_FN void store_changed(const Array& array, int operand, const Block& block, const T* values,
                                  const T* buffer) {
  if (values == buffer) store(array, operand, block, values);
}

// (value - mean) / std. Where the channel changes from element to element, mean and std are laid out
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
      means[i] = i < by.channels ? mean(i) : means[i - by.channels];
      stds[i] = i < by.channels ? std(i) : stds[i - by.channels];
    }
  }

  T mean(int64_t channel) const { return static_cast<const T*>(by.mean)[channel * by.mean_stride]; }
  T std(int64_t channel) const { return static_cast<const T*>(by.std)[channel * by.std_stride]; }

  // std of a block's elements, or null where there is none.
  const T* stds_of(const Block& block, T* buffer) const {
    if (by.mean == nullptr) return nullptr;
    if (periodic) return stds.get() + block.position() % by.channels;
    const T s = std(block.chunk.channel);
    for (int64_t i = 0; i < block.count; ++i) buffer[i] = s;
    return buffer;
  }

  // Stores the model's input: normalized, or the values as they are without a normalization.
  void store(const Array& array, int operand, const Block& block, const T* values) const {
    const int64_t offset = block.offset(operand), stride = block.stride(operand);
    if (by.mean == nullptr) return store_values(array, offset, stride, block.count, values);
    if (periodic) {
      const int64_t phase = block.position() % by.channels;
      return store_normalized(array, offset, stride, block.count, values, means.get() + phase,
                              stds.get() + phase);
    }
    const int64_t channel = block.chunk.channel;
    store_normalized(array, offset, stride, block.count, values, mean(channel), std(channel));
  }
};

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
  // The elements of a block; null where there is no such operand.
  struct Values {
    const Block& block;
    int64_t count, sample;
    T* __restrict adv = nullptr;
    const T* __restrict clean = nullptr;
    const C* __restrict grad = nullptr;
    T* __restrict previous = nullptr;
  };

  explicit StepBlocks(const Step& op)
      : op_(op),
        plan_(op.plan),
        operands_(op.operands().count),
        normalizer_(op.normalization, plan_.channel) {}

  const Normalizer<T>& normalizer() const { return normalizer_; }

  // Calls visit(values) for what lies in the chunks.
  template <class Visit>
  void read(int64_t sample, int64_t first, int64_t last, Visit&& visit) {
    walk(sample, first, last, [&](const Block& block) { visit(load_values(block)); });
  }

  // Keeps what visit(values) does to adv and previous, where the sample is active, and writes out.
  template <class Visit>
  void write(int64_t sample, int64_t first, int64_t last, Visit&& visit) {
    walk(sample, first, last, [&](const Block& block) {
      const T* adv;
      if (op_.active.has(block.chunk.sample)) {
        const Values values = load_values(block);
        visit(values);
        store_changed(op_.adv, Step::kAdv, block, values.adv, adv_);
        if (op_.has_previous())
          store_changed(op_.previous, Step::kPrevious, block, values.previous, previous_);
        adv = values.adv;
      } else {
        if (!op_.has_out()) return;
        adv = load(op_.adv, Step::kAdv, block, adv_);
      }
      if (op_.has_out()) normalizer_.store(op_.out, Step::out_at(op_.has_previous()), block, adv);
    });
  }

 private:
  template <class Visit>
  void walk(int64_t sample, int64_t first, int64_t last, Visit&& visit) {
    for_each_block(plan_, operands_, first, last, visit, sample);
  }

  Values load_values(const Block& block) {
    Values values = {block, block.count, block.chunk.sample};
    values.adv = load_to_change(op_.adv, Step::kAdv, block, adv_);
    values.clean = load(op_.clean, Step::kClean, block, clean_);
    if (op_.has_grad()) values.grad = load_grad(block);
    if (op_.has_previous()) values.previous = load_to_change(op_.previous, Step::kPrevious, block, previous_);
    return values;
  }

  const C* load_grad(const Block& block) {
    if constexpr (kGrad == Grad::signs)
      return load_sign(op_.grad, block.offset(Step::kGrad), block.stride(Step::kGrad), block.count, grad_);
    else
      return load(op_.grad, Step::kGrad, block, grad_);
  }

  const Step& op_;
  const Plan& plan_;
  const int operands_;
  const Normalizer<T> normalizer_;
  alignas(64) T adv_[kBlock], clean_[kBlock], previous_[kBlock];
  alignas(64) C grad_[kBlock];
};
