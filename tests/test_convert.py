"""convert and revert on models of others, and subclasses as other libraries make them."""

import copy
from abc import ABC, abstractmethod

import pytest
import torch
from helpers import assert_like, backward, error_of, every_class, layers, pair, tensors
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import gatedrnn

THEIRS = (nn.GRU, nn.LSTM, nn.GRUCell, nn.LSTMCell)
OURS = (gatedrnn.GRU, gatedrnn.LSTM, gatedrnn.GRUCell, gatedrnn.LSTMCell)


class Translator(nn.Module):
    """A model as others write them: packed bidirectional encoders, a decoder of cells."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(
            6, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3
        )
        self.summary = nn.ModuleList([nn.GRU(10, 8, bias=False), nn.GRU(8, 8)])
        self.decoder = nn.ModuleDict({"first": nn.LSTMCell(8, 8), "second": nn.GRUCell(8, 8)})
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 11))
        self.summary[1].weight_hh_l0 = self.summary[0].weight_hh_l0  # tied
        self.same = self.summary[0]  # one module under two names
        nn.init.orthogonal_(self.encoder.weight_hh_l0)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        encoded, (h, _) = self.encoder(packed)
        y, _ = pad_packed_sequence(encoded, batch_first=True)
        y, state = self.summary[0](y.transpose(0, 1))
        y, state = self.summary[1](y, state)
        h, c, g = state[0], torch.zeros_like(state[0]), y[-1]
        outputs = []
        for _ in range(3):
            h, c = self.decoder["first"](g, (h, c))
            g = self.decoder["second"](h, g)
            outputs.append(self.head(g))
        return torch.stack(outputs, dim=1)


def recurrent(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, THEIRS + OURS)}


def train(model, steps=4):
    torch.manual_seed(12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    tokens, lengths = torch.randint(0, 11, (6, 7)), torch.tensor([3, 7, 1, 7, 5, 2])
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        scores = model(tokens, lengths)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, :3].flatten())
        loss.backward()
        losses += [loss.item(), nn.utils.clip_grad_norm_(model.parameters(), 0.5).item()]
        optimizer.step()
    return losses


def test_a_third_party_model_trains_beside_its_original():
    original = Translator()
    model = gatedrnn.convert(copy.deepcopy(original))
    assert {type(m) for m in recurrent(model).values()} == set(OURS)
    assert train(model) == pytest.approx(train(original), rel=2e-5)
    for (name, p), q in zip(original.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert train(gatedrnn.revert(model)) == pytest.approx(train(original), rel=1e-3)


def test_convert_and_revert_keep_everything_else():
    model = Translator().eval()
    hyper = {n: str(m) for n, m in model.named_modules()}
    before = dict(model.named_parameters())
    model.encoder.note = "kept"
    model.encoder.weight_hh_l0.requires_grad_(False)
    assert gatedrnn.convert(model) is model
    assert [type(m) for m in recurrent(model).values()] == [
        OURS[THEIRS.index(type(m))] for m in recurrent(Translator()).values()
    ]
    assert {n: str(m) for n, m in model.named_modules()} == hyper
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[n] is p for n, p in before.items())
    assert model.same is model.summary[0]
    assert model.summary[1].weight_hh_l0 is model.summary[0].weight_hh_l0
    assert model.encoder.note == "kept"
    assert not model.encoder.weight_hh_l0.requires_grad
    assert not any(m.training for m in model.modules())
    assert gatedrnn.revert(gatedrnn.convert(model)) is model
    assert {type(m) for m in recurrent(model).values()} == set(THEIRS)
    assert all(p is before[n] for n, p in model.named_parameters())


def test_an_optimizer_made_before_goes_on():
    original = Translator()
    models = original, copy.deepcopy(original)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    gatedrnn.convert(models[1])
    tokens, lengths = torch.randint(0, 11, (4, 5)), torch.tensor([5, 4, 4, 1])
    losses = []
    for m, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(0)
        for _ in range(3):
            optimizer.zero_grad()
            loss = m(tokens, lengths).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[3:] == pytest.approx(losses[:3], rel=2e-5)


@every_class
def test_a_bare_module_is_converted_and_reverted(theirs, ours):
    m = theirs(3, 4)
    x = torch.randn(2, 3)
    expected = m(x)
    m = gatedrnn.convert(m)
    assert type(m) is ours
    assert_like(m(x), expected)
    assert type(gatedrnn.revert(m)) is theirs
    assert type(gatedrnn.revert(ours(3, 4))) is theirs
    assert_like(gatedrnn.revert(m)(x), expected)


@every_class
def test_hooks_and_forward_methods_survive(theirs, ours):
    m = theirs(3, 4)
    log = []
    m.register_forward_hook(lambda m, a, r: log.append("forward"))
    m.register_full_backward_hook(lambda m, gi, go: log.append("backward"))
    m.weight_ih_l0 if hasattr(m, "weight_ih_l0") else m.weight_ih
    m.register_state_dict_post_hook(lambda m, state, *rest: log.append("state"))
    m = gatedrnn.convert(m)
    backward(m(torch.randn(2, 3, requires_grad=True)))
    m.state_dict()
    assert log == ["forward", "backward", "state"]


@layers
def test_norms_and_parametrizations_survive(theirs, ours):
    for apply in (nn.utils.spectral_norm, nn.utils.parametrizations.orthogonal):
        m = apply(theirs(3, 4), "weight_hh_l0").eval()
        x = torch.randn(5, 2, 3)
        expected = m(x)
        converted = gatedrnn.convert(m)
        assert isinstance(converted, ours)
        assert_like(converted(x), expected)
        reverted = gatedrnn.revert(converted)
        assert isinstance(reverted, theirs)
        assert_like(reverted(x), expected)


@every_class
def test_subclasses_of_others_are_left_alone(theirs, ours):
    class Own(theirs):
        def forward(self, x):
            return super().forward(x + 1)

    model = nn.Sequential(Own(3, 4))
    expected = model(torch.ones(2, 3))
    assert_like(gatedrnn.convert(model)(torch.ones(2, 3)), expected)
    assert type(model[0]) is Own


@pytest.mark.parametrize("function", [gatedrnn.convert, gatedrnn.revert])
def test_only_modules_are_taken(function):
    for value in (nn.GRU, None, {"rnn": nn.GRU(3, 4)}, torch.zeros(1)):
        error = error_of(lambda value=value: function(value))
        assert type(error) is TypeError
        assert type(value).__name__ in str(error)


def test_models_without_recurrent_modules_and_plain_rnns_stay():
    model = nn.Sequential(nn.Linear(3, 3), nn.RNN(3, 4), nn.RNNCell(3, 4))
    kinds = [type(m) for m in model]
    assert gatedrnn.revert(gatedrnn.convert(model)) is model
    assert [type(m) for m in model] == kinds


@every_class
def test_convert_works_where_torch_nn_has_been_patched(theirs, ours, monkeypatch):
    original = theirs(3, 4)
    monkeypatch.setattr(nn, theirs.__name__, ours)
    assert type(gatedrnn.convert(original)) is ours
    assert type(gatedrnn.revert(original)) is theirs


def test_copies_and_state_dicts_of_a_converted_model():
    original = Translator().eval()
    model = gatedrnn.convert(copy.deepcopy(original))
    tokens, lengths = torch.randint(0, 11, (3, 4)), torch.tensor([4, 2, 3])
    expected = original(tokens, lengths)
    assert_like(copy.deepcopy(model)(tokens, lengths), expected)
    fresh = gatedrnn.convert(Translator()).eval()
    fresh.load_state_dict(original.state_dict())
    assert_like(fresh(tokens, lengths), expected)
    original.load_state_dict(model.state_dict())


def forecasting_layers(base):
    """The way of pytorch-forecasting: an abstract RNNBase of its own before the layer."""

    class RNN(ABC, nn.RNNBase):
        @abstractmethod
        def repeat_state(self, hx, n):
            """Expand a state to n samples."""

        def forward(self, x, hx=None, lengths=None, enforce_sorted=True):
            if isinstance(x, PackedSequence) or lengths is None:
                return super().forward(x, hx=hx)
            packed = pack_padded_sequence(
                x, lengths, enforce_sorted=enforce_sorted, batch_first=self.batch_first
            )
            out, hx = super().forward(packed, hx=hx)
            return pad_packed_sequence(out, batch_first=self.batch_first)[0], hx

    class Layer(RNN, base):
        def repeat_state(self, hx, n):
            return torch.utils._pytree.tree_map(lambda h: h.repeat_interleave(n, 1), hx)

    return Layer


@layers
def test_subclasses_in_the_manner_of_pytorch_forecasting(theirs, ours):
    a, b = pair(forecasting_layers(theirs), forecasting_layers(ours), 3, 4, batch_first=True)
    assert isinstance(b, nn.RNNBase)
    x, lengths = torch.randn(3, 5, 3), torch.tensor([5, 2, 4])
    results = [m(x, lengths=lengths, enforce_sorted=False) for m in (a, b)]
    assert_like(results[1], results[0])
    hx = [m.repeat_state(r[1], 2) for m, r in zip((a, b), results, strict=True)]
    assert_like(b(x.repeat(2, 1, 1), hx[1]), a(x.repeat(2, 1, 1), hx[0]))


@layers
def test_initialisation_loops_of_others(theirs, ours):
    def initialise(m):
        """As many projects do: by name, by isinstance of RNNBase, with the gates' thirds."""
        assert isinstance(m, nn.RNNBase)
        for name, p in m.named_parameters():
            if "weight_ih" in name:
                nn.init.xavier_uniform_(p.data)
            elif "weight_hh" in name:
                for gate in p.data.chunk(4 if m.mode == "LSTM" else 3):
                    nn.init.orthogonal_(gate)
            elif "bias" in name:
                p.data.fill_(0)
                p.data[m.hidden_size : 2 * m.hidden_size].fill_(1)

    results = []
    x = torch.randn(4, 2, 3)
    for cls in (theirs, ours):
        torch.manual_seed(2)
        m = cls(3, 4, num_layers=2)
        initialise(m)
        m.flatten_parameters()
        results.append(list(tensors(m(x))))
    assert_like(results[1], results[0])
