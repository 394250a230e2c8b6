"""Which words ask for depth, for a program, for something short, or for a fact?   Many languages, one table.

A word counts when it begins with a stem; stems of up to three letters are whole words. Scripts without spaces are
searched for the stems as they stand. One stem serves several languages where their words are kin.
"""

import re
from collections.abc import Mapping, Sequence

from gateway.score.remembered import Words

DEPTH = """
    analy analis analiz análi анализ проанализ تحلي حلّل حلل विश्लेष phân
    assess evaluat bewert évalu valut valor оцен değerlend قيّم قيم मूल्यांक
    compar vergleich сравн porówn karşılaştır vergelij قارن مقارن तुलना
    design entwirf entwerf entwurf conçois concev conception diseñ progett projet спроект проект tasarl صمم صمّم
    architekt architect arquitect architettur arquitet архитект mimari معماري आर्किटेक्ट
    prove proof beweis démontr preuve demostr dimostr demonstr prueba докаж доказ kanıtla udowodn أثبت برهن برهان
    सिद्ध
    derive herleit ableit déduir déduis deriva вывед türet اشتق
    justif begründ обосн gerekçe uzasadn برر برّر
    investig untersuch enquêt indag исслед araştır zbadaj حقق जांच जाँच
    diagnos diagnóst диагност teşhis شخص
    synthes sintetiz synthét синтез sentez استخلص
    optimi optymal оптимиз حسّن
    implement реализ uygula نفّذ कार्यान्व
    refactor refaktor рефактор debug отлад
    strateg estrateg стратег استراتيج रणनीति
    hypothes hipótes hypothès гипотез فرضي
    tradeoff trade-off kompromiss compromis компромисс مفاضل
    rigor rigour rigur strikt строг صارم
    stepwise schrittweise пошагов adım चरण
    critici kritisier critiqu критик
    comput berechn calcul вычисл рассчит hesapla oblicz احسب गणना berekey hitung
    determin ermittl détermin определ belirle wyznacz حدد
    solve löse résou resuel resolv risolv реши çöz rozwiąż حل हल
    integral equation gleichung équation ecuación equação уравнен denklem równan معادل समीकरण
    theorem théorème teorem теорем نظري
"""
PROGRAM = """
    function funktion fonction función função funzion функц fonksiyon دالة फलन फ़ंक्शन
    program програм برنامج प्रोग्राम
    algorit алгорит خوارزم एल्गोरि
    script skript скрипт code código codice код kod kodu كود कोड
    class clase klass класс method méthode método метод
    python typescript java rust golang sql regex bash html css
    recursi rekursi récursi рекурс array string tuple lambda json api
"""
SHORT = """
    brief short concise succinct summar rewrite translat simply rephrase
    kurz knapp fasse zusammenfass übersetz einfach
    bref brève brièvement résum tradui défini simplement
    breve resum traduc traduz defin sencill simples riassum semplice krótko streść kort samenvat vertaal
    кратк коротк перевед резюм определи
    kısa özet çevir tanımla ringkas terjemah tóm dịch
    باختصار لخص لخّص ترجم عرّف عرف संक्षे सारांश अनुवाद परिभाष
"""
FACT = """
    who whom whose when where wer wann wo wem qui quand où quién quien cuándo cuando dónde donde chi dove
    quem onde кто когда где kto kiedy gdzie kim nerede wie waar siapa kapan mana ai đâu من متى أين कौन कब कहाँ
    capital hauptstadt столиц başkent stolic عاصمة राजधानी
    hello hallo hola ciao bonjour привет merhaba salut thank danke gracias merci grazie obrigad спасибо مرحبا
    शुक्रिया नमस्ते hi hey
"""
DEPTH_DENSE = """
    分析 剖析 評価 评估 評估 比較 比较 对比 設計 设计 架构 架構 アーキテクチャ 证明 証明 證明 推导 推導 導出 推理
    推論 论证 論証 论述
    取舍 权衡 トレードオフ 根因 根本原因 调查 調査 诊断 診断 综合 統合 优化 最適化 实现 実装 重构 调试 デバッグ 策略
    戦略 逐步 段階
    假设 仮説 深入 深く 严格 厳密 详细 詳細 全面 规划 計画 验证 検証 计算 計算 求解 解く 方程 定理 积分 積分 探索
    方案
    분석 평가 비교 설계 아키텍처 증명 유도 추론 조사 진단 종합 최적화 구현 전략 단계별 가설 심층 상세 계획 검증 계산
    방정식 정리
    วิเคราะห์ เปรียบเทียบ ออกแบบ พิสูจน์ คำนวณ ประเมิน
"""
PROGRAM_DENSE = """
    函数 函數 関数 程序 程式 プログラム 代码 代碼 コード 算法 アルゴリズム 脚本
    함수 프로그램 코드 알고리즘 ฟังก์ชัน โปรแกรม
"""
SHORT_DENSE = """
    简短 简要 简洁 簡潔 簡短 一句话 一文で 一言 总结 概括 要約 翻译 翻訳 翻譯 定义 定義 改写 用一句
    간단 간략 요약 번역 정의 สรุป แปล
"""
FACT_DENSE = """
    谁 誰 哪里 哪年 哪个 什么时候 いつ どこ 首都 你好 谢谢 こんにちは ありがとう
    누구 언제 어디 수도 안녕 감사 ใคร เมื่อไร ที่ไหน
"""

KINDS = ("depth", "program", "short", "fact")
KEY = 4  # letters by which a word finds its stems
# A run without spaces, digits and punctuation; \w would break words of Hindi and Arabic at their vowel signs.
WORD = re.compile(r"[^\s\d!-,./:-@\[-`{-~¿¡«»“”„‘’…—–।،؛؟、。「」（），：；！？]+")
# A run of Thai, Japanese, Chinese or Korean.
DENSE = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_ASCII = "".join(chr(at).lower() if WORD.match(chr(at)) else " " for at in range(128)).encode().ljust(256)
_NONE = dict.fromkeys(KINDS, 0)

Stems = Sequence[tuple[str, str]]


def _stems(*tables: str) -> Stems:
    """Every stem with its kind."""
    return [(stem, kind) for kind, table in zip(KINDS, tables, strict=True) for stem in table.split()]


def _by(size: int, stems: Stems) -> Mapping[str, Stems]:
    """By their first letters."""
    found: dict[str, list[tuple[str, str]]] = {}
    for stem, kind in stems:
        found.setdefault(stem[:size], []).append((stem, kind))
    return found


def _begun(word: str) -> Stems:
    """The stems that a word begins with."""
    return tuple([pair for pair in _HEADS.get(word[:KEY], ()) if word.startswith(pair[0])])


_HEADS = _by(KEY, _stems(DEPTH, PROGRAM, SHORT, FACT))
_BEGUN = Words(_begun)
_DENSE = _by(1, _stems(DEPTH_DENSE, PROGRAM_DENSE, SHORT_DENSE, FACT_DENSE))


def asked(text: str) -> dict[str, int]:
    """How many different stems of each kind a text has."""
    found: set[tuple[str, str]] = set()
    for stems in filter(None, map(_BEGUN.__getitem__, _words(text))):
        found.update(stems)
    for char, stems in () if text.isascii() else _DENSE.items():
        if char in text:
            found.update([pair for pair in stems if pair[0] in text])
    counts = _NONE.copy()
    for _, kind in found:
        counts[kind] += 1
    return counts


def _words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return text.encode().translate(_ASCII).decode().split() if text.isascii() else WORD.findall(text.lower())
